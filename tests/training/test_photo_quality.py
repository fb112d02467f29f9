"""What is said of photos that teach little: near duplicates, blur, enlargement; and how seldom it is said for nothing.

pytest tests/training/test_photo_quality.py     a few seconds; on real faces too where shared/data is there
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from sweeps.demo import demo_sweep_file
from training.config import SubjectConfig
from training.photo_quality import blurred, layout_distance, layout_of, quality_of, sharpness
from training.photos import check_photos, photo_remarks, remarks_on_crops
from training.pictures import find_photos, read_picture

DEMO_PHOTOS = demo_sweep_file().parent / "photos"


def landscape(seed: int, size: tuple[int, int] = (320, 256)) -> Image.Image:
    """Detail at every scale, as photos have it: the energy falls with the square of the frequency."""
    rng = np.random.default_rng(seed)
    width, height = size
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    spectrum = np.fft.fft2(rng.standard_normal((height, width))) / np.maximum(frequencies, 1 / width)
    levels = np.real(np.fft.ifft2(spectrum))
    scaled = (levels - levels.min()) / (levels.max() - levels.min()) * 255
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six sharp photos, each of something else."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(6):
        landscape(number).save(photos / f"{number}.png")
    return photos


def remarks(folder: Path, resolution: int = 256) -> list[str]:
    subject = SubjectConfig(photos=folder, instance_prompt="a photo of sks woman", resolution=resolution)
    check_photos(subject)
    return photo_remarks(subject)


def test_sharp_and_different_photos_get_no_remark(folder: Path) -> None:
    """Nor do the demo's."""
    assert remarks(folder) == []
    assert remarks(DEMO_PHOTOS, 64) == []


def test_a_blurred_photo_is_named(folder: Path) -> None:
    """Beside sharp ones; where all are blurred alike there is nothing to hold them against."""
    image = landscape(9)
    image.filter(ImageFilter.GaussianBlur(4)).save(folder / "soft.png")
    (remark,) = remarks(folder)
    assert remark.startswith("photos that are blurred beside the others")
    assert "soft.png (" in remark
    assert "0.png" not in remark
    for photo in folder.iterdir():
        read_picture(photo).filter(ImageFilter.GaussianBlur(4)).save(photo)
    assert remarks(folder) == []


def test_more_blur_is_less_sharp() -> None:
    """And neither a darker nor a smaller picture is: not what it shows, but how fine it shows it."""
    image = landscape(1, (512, 512))
    by_sigma = [sharpness(image.filter(ImageFilter.GaussianBlur(sigma))) for sigma in (0, 2, 4, 8)]
    assert by_sigma == sorted(by_sigma, reverse=True)
    assert by_sigma[2] < by_sigma[0] / 3
    assert sharpness(image.point(lambda level: level // 2)) == pytest.approx(by_sigma[0], rel=0.1)


def test_few_photos_have_no_usual_sharpness() -> None:
    """Of four others and more there is one."""
    assert blurred({"a": 1.0, "b": 1.0, "c": 1.0, "soft": 0.1}) == {}
    assert blurred({"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "soft": 0.1}) == {"soft": 0.1}


def test_two_of_a_burst_are_named_together(folder: Path) -> None:
    """Framed a little otherwise and lit otherwise; copies are refused, not warned of."""
    image = landscape(3)
    image.crop((4, 2, 318, 254)).point(lambda level: level * 0.9).save(folder / "3 again.jpg")
    (remark,) = remarks(folder)
    assert "show nearly the same" in remark
    assert "3 again.jpg and 3.png" in remark


def test_distance_is_of_what_is_seen() -> None:
    """Nothing to itself, as much one way as the other, and much to another photo."""
    one, other = layout_of(landscape(1)), layout_of(landscape(2))
    assert layout_distance(one, one) == 0
    assert layout_distance(one, other) == pytest.approx(layout_distance(other, one), rel=0.1)
    assert layout_distance(one, other) > 0.5
    assert layout_distance(layout_of(Image.new("RGB", (64, 64), "red")), layout_of(Image.new("RGB", (64, 64)))) == 0


def test_enlarged_photos_are_named_with_how_much(folder: Path) -> None:
    """From a quarter more on, the worst first."""
    landscape(7, (100, 150)).save(folder / "small.png")
    (remark,) = remarks(folder)
    assert remark.endswith("small.png (2.6 times)")
    (remark,) = remarks(folder, 384)
    assert "small.png (3.8 times), 0.png (1.5 times)" in remark


def test_small_faces_are_named() -> None:
    """Below an eighth of the training picture's side."""
    (remark,) = remarks_on_crops({"a": 1, "b": 1}, {"a": 0.1, "b": 0.2})
    assert "photos with a small face" in remark
    assert "a (10%)" in remark
    assert "b (" not in remark


def test_a_photo_is_measured_anew_when_it_has_changed(tmp_path: Path) -> None:
    """What is remembered is of the file as it was."""
    photo = tmp_path / "a.png"
    landscape(1).save(photo)
    before = quality_of(photo)
    assert quality_of(photo) is before
    landscape(2, (400, 300)).save(photo)
    assert quality_of(photo).size == (400, 300)


def test_real_faces_are_seldom_called_what_they_are_not(shared_data: Path, tmp_path: Path) -> None:
    """Forty people: nobody's photo is called blurred, ten or fewer have near duplicates; press photos get no remark."""
    num_near = 0
    for person in sorted((shared_data / "att_faces").glob("s*")):
        folder = tmp_path / person.name
        folder.mkdir()
        for file in person.glob("*.pgm"):
            Image.open(file).save(folder / f"{file.stem}.png")
        said = remarks(folder, 92 // 8 * 8)
        assert not any("blurred" in remark for remark in said), person
        num_near += any("nearly the same" in remark for remark in said)
    assert num_near <= 10
    assert remarks(shared_data / "people" / "obama", 512) == []


def test_real_photos_out_of_focus_are_found(shared_data: Path) -> None:
    """Each of seven large photos, blurred by half a percent of its shorter side among the others."""
    photos = [photo for person in ("obama", "biden") for photo in find_photos(shared_data / "people" / person)]
    usual = {photo.name: quality_of(photo).sharpness for photo in photos}
    for photo in photos:
        image = read_picture(photo)
        soft = image.filter(ImageFilter.GaussianBlur(0.005 * min(image.size)))
        assert list(blurred({**usual, photo.name: sharpness(soft)})) == [photo.name]
