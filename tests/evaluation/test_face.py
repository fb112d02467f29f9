"""Laws of likeness: on embeddings, on references, and of the real detectors on the one face that scikit-image ships.

`pytest tests/evaluation/test_face.py`, half a minute. Embedding weights are random; `test_real_faces.py` has real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from evaluation.face import (
    Face,
    References,
    check_face_encoder,
    embed_references,
    face_similarity,
    largest_box,
    largest_first,
    load_face_encoder,
    mean_embedding,
)
from training.pictures import pixel_digest

vectors = (
    st.lists(st.floats(-1, 1, width=32), min_size=8, max_size=8)
    .map(np.float32)
    .filter(lambda v: np.abs(v).max() > 1e-3)
)


class ColourEncoder:
    """A face is a picture that is not black; its embedding is the mean colour. Two faces where the corner is white."""

    name = "mean colour"

    def find_faces(self, images: Sequence[Image.Image]) -> list[list[Face]]:
        """One or two faces, none in black."""
        return [self._faces(np.asarray(image, dtype=np.float32)) for image in images]

    def _faces(self, pixels: np.ndarray) -> list[Face]:
        colour = pixels.mean(axis=(0, 1))
        if not colour.any():
            return []
        height, width = pixels.shape[:2]
        face = Face((0.0, 0.0, float(width), float(height)), 1.0, colour / np.linalg.norm(colour))
        small = Face((0.0, 0.0, 1.0, 1.0), 1.0, -face.embedding)
        return [face, small] if pixels[0, 0].min() == 255 else [face]


def colour_photos(folder: Path, *colours: tuple[int, int, int]) -> list[Path]:
    paths = []
    for i, colour in enumerate(colours):
        paths.append(folder / f"{i}.png")
        Image.new("RGB", (8, 8), colour).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    """A 512 px photo with one frontal face, about 96 px wide, right of the middle above (NASA, public domain)."""
    package = find_spec("skimage")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "data" / "astronaut.png"
    if not path.is_file():
        pytest.skip("needs astronaut.png, which this scikit-image does not ship")
    return Image.open(path).convert("RGB")


# --- embeddings


@given(vectors, st.floats(0.01, 100))
def test_a_face_is_like_itself(v: np.ndarray, scale: float) -> None:
    """Similarity with itself is 1 at any length, with its opposite -1."""
    assert face_similarity(v, np.float32(scale) * v) == pytest.approx(1, abs=1e-6)
    assert face_similarity(v, -v) == pytest.approx(-1, abs=1e-6)


@given(vectors, vectors)
def test_similarity_is_symmetric_and_bounded(v: np.ndarray, w: np.ndarray) -> None:
    """In [-1, 1], the same both ways."""
    assert -1 <= face_similarity(v, w) <= 1
    assert face_similarity(v, w) == face_similarity(w, v)


@pytest.mark.parametrize("broken", [np.zeros(8), np.full(8, np.nan), np.full(8, np.inf)])
def test_similarity_is_never_nan(broken: np.ndarray) -> None:
    """An embedding without a direction is an error, not a score."""
    with pytest.raises(ValueError, match="finite norm"):
        face_similarity(broken.astype(np.float32), np.ones(8, dtype=np.float32))


@given(st.lists(vectors, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_the_photos_does_not_matter(embeddings: list[np.ndarray], random: np.random.Generator) -> None:
    """The reference is the same bit for bit for every order of the photos."""
    shuffled = list(embeddings)
    random.shuffle(shuffled)
    try:
        reference = mean_embedding(embeddings)
    except ValueError:
        return  # opposite vectors cancel
    assert np.array_equal(reference, mean_embedding(shuffled))
    assert np.linalg.norm(reference) == pytest.approx(1, abs=1e-6)


def test_every_photo_weighs_the_same() -> None:
    """Embeddings are brought to unit norm before they are averaged."""
    x, y = np.float32([1, 0]), np.float32([0, 1])
    assert mean_embedding([100 * x, y]) == pytest.approx(np.sqrt([0.5, 0.5]))


def test_the_largest_face_comes_first_and_of_equal_ones_the_central() -> None:
    """Order by area, then by distance to the centre, whatever the detector's order."""
    boxes = [(0, 0, 10, 10), (45, 45, 55, 55), (0, 0, 20, 20), (80, 80, 90, 90)]
    faces = [Face(tuple(map(float, box)), 1.0, np.ones(2, dtype=np.float32)) for box in boxes]
    for order in (faces, faces[::-1]):
        assert [face.box for face in largest_first(order, (100, 100))] == [boxes[2], boxes[1], boxes[3], boxes[0]]


# --- references


def test_photos_without_a_face_are_left_out_and_named(tmp_path: Path) -> None:
    """They do not enter the mean; photos with several faces count by the largest and are named too."""
    photos = colour_photos(tmp_path, (9, 0, 0), (0, 0, 0), (255, 255, 255))
    references = embed_references(photos, ColourEncoder())
    assert references.used == ("0.png", "2.png")
    assert references.without_face == ("1.png",)
    assert references.several_faces == ("2.png",)
    assert references.embedding == pytest.approx(mean_embedding([np.float32([1, 0, 0]), np.float32([1, 1, 1])]))


def test_photos_of_nobody_are_refused(tmp_path: Path) -> None:
    """Without a single face there is nothing to be alike to; the photos are named."""
    with pytest.raises(ValueError, match=r"got 0 of 2 \(0\.png, 1\.png\)"):
        embed_references(colour_photos(tmp_path, (0, 0, 0), (0, 0, 0)), ColourEncoder())


def test_references_survive_the_disk(tmp_path: Path) -> None:
    """Saved and loaded they are the same, bit for bit; another file is refused by its name."""
    references = embed_references(colour_photos(tmp_path, (9, 1, 0), (0, 0, 0), (255, 255, 255)), ColourEncoder())
    path = tmp_path / "reference_embedding.safetensors"
    references.save(path)
    again = References.load(path)
    assert np.array_equal(again.embeddings, references.embeddings)
    assert (again.used, again.digests, again.without_face, again.several_faces, again.face_encoder) == (
        references.used,
        references.digests,
        references.without_face,
        references.several_faces,
        references.face_encoder,
    )
    for content in (b"", b"something else"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="reference_embedding"):
            References.load(path)
    with pytest.raises(ValueError, match=r"nowhere\.safetensors"):
        References.load(tmp_path / "nowhere.safetensors")


def test_a_photo_is_not_compared_with_itself(tmp_path: Path) -> None:
    """The reference for one of several photos is the mean of the others; told by pixels, not by name or format."""
    photos = colour_photos(tmp_path, (200, 0, 0), (0, 200, 0), (0, 0, 200))
    references = embed_references(photos, ColourEncoder())
    Image.open(photos[0]).save(tmp_path / "copy.webp", lossless=True)
    without_red = references.excluding(Image.open(tmp_path / "copy.webp"))
    assert without_red == pytest.approx(np.sqrt([0, 0.5, 0.5]))
    assert references.excluding(Image.new("RGB", (8, 8), (1, 2, 3))) is None
    alone = embed_references(photos[:1], ColourEncoder())
    assert alone.excluding(Image.open(photos[0])) is None, "nothing would be left to compare with"


def test_a_digest_is_of_what_is_seen() -> None:
    """Equal for equal pixels, other for other pixels or another shape of the same bytes."""
    image = Image.new("RGB", (2, 8), "red")
    assert pixel_digest(image) == pixel_digest(image.convert("RGBA"))
    assert pixel_digest(image) != pixel_digest(Image.new("RGB", (8, 2), "red"))
    assert pixel_digest(image) != pixel_digest(Image.new("RGB", (2, 8), "blue"))


# --- the real detectors


@pytest.mark.parametrize("encoder", ["facenet", "dlib"])
def test_the_face_is_found_where_it_is(encoder: str, astronaut: Image.Image, tiny_face_weights: str) -> None:
    """One face, in the right place of the original picture, however large or small the picture comes."""
    if encoder == "dlib":
        pytest.importorskip("dlib", reason="needs the extra dlib")
    judge = load_face_encoder(tiny_face_weights if encoder == "facenet" else "dlib", "cpu")
    for side in (128, 512, 1600):
        image = astronaut.resize((side, side), Image.Resampling.LANCZOS)
        (faces,) = judge.find_faces([image])
        assert len(faces) == 1
        x0, y0, x1, y1 = np.array(faces[0].box) / side
        assert (x0 + x1) / 2 == pytest.approx(0.435, abs=0.03)
        assert (y0 + y1) / 2 == pytest.approx(0.22, abs=0.04)
        assert 0.14 < x1 - x0 < 0.3
        assert 0.5 <= faces[0].probability <= 1
        assert np.linalg.norm(faces[0].embedding) == pytest.approx(1, abs=1e-5)
        assert faces[0].embedding.shape == (128,)
        assert largest_box(judge, image) == faces[0].box


@pytest.mark.parametrize("encoder", ["facenet", "dlib"])
@pytest.mark.parametrize("size", [(64, 64), (512, 512), (2000, 10), (3, 900), (1, 1)])
def test_no_face_is_an_empty_list(encoder: str, size: tuple[int, int], tiny_face_weights: str) -> None:
    """Black, noise, a strip or a dot: no face, no error."""
    if encoder == "dlib":
        pytest.importorskip("dlib", reason="needs the extra dlib")
    judge = load_face_encoder(tiny_face_weights if encoder == "facenet" else "dlib", "cpu")
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    assert judge.find_faces([Image.new("RGB", size), Image.fromarray(noise)]) == [[], []]
    assert judge.find_faces([]) == []
    assert largest_box(judge, Image.new("RGB", size)) is None


def test_the_crop_is_facenets_own(astronaut: Image.Image, tiny_face_weights: str) -> None:
    """Box, crop and standardisation equal MTCNN's own forward pass, and the embedding the plain network's."""
    from facenet_pytorch import MTCNN, InceptionResnetV1

    network = InceptionResnetV1()
    network.last_linear = torch.nn.Linear(1792, 128, bias=False)
    network.last_bn = torch.nn.BatchNorm1d(128, eps=0.001)
    network.load_state_dict(load_file(tiny_face_weights))
    crops = MTCNN(160, margin=0, keep_all=True)(astronaut)
    with torch.no_grad():
        expected = network.eval()(crops)[0].numpy()
    (faces,) = load_face_encoder(tiny_face_weights, "cpu").find_faces([astronaut])
    assert faces[0].embedding == pytest.approx(expected, abs=1e-5)


def test_an_embedding_does_not_depend_on_company(astronaut: Image.Image, tiny_face_weights: str) -> None:
    """A picture's faces are its own, alone or among others, in order."""
    judge = load_face_encoder(tiny_face_weights, "cpu")
    black = Image.new("RGB", (100, 100))
    alone = judge.find_faces([astronaut])[0][0]
    among = judge.find_faces([black, astronaut, black, astronaut.resize((300, 300))])
    assert [len(faces) for faces in among] == [0, 1, 0, 1]
    assert among[1][0].box == alone.box
    assert among[1][0].embedding == pytest.approx(alone.embedding, abs=1e-5)


# --- weights


def test_the_head_has_the_width_of_the_weights(tmp_path: Path, tiny_face_weights: str) -> None:
    """512 wide with a classifier on top, as facenet-pytorch's own files are, or any other width, also as .pt."""
    from evaluation.face import FacenetEncoder

    weights = load_file(tiny_face_weights)
    weights["logits.weight"], weights["logits.bias"] = torch.zeros(10, 512), torch.zeros(10)
    weights["last_linear.weight"] = torch.ones(512, 1792)
    for name in ("weight", "bias", "running_mean", "running_var"):
        weights[f"last_bn.{name}"] = torch.ones(512)
    torch.save(weights, tmp_path / "weights.pt")
    encoder = FacenetEncoder(tmp_path / "weights.pt", "weights")
    assert encoder.network.last_linear.out_features == 512  # type: ignore[union-attr]
    assert {p.dtype for p in encoder.network.parameters()} == {torch.float32}


def test_an_encoder_is_loaded_once_and_named_by_weights_and_crop(tiny_face_weights: str) -> None:
    """A process keeps one copy; the name tells weights and crop, and no folder."""
    encoder = load_face_encoder(tiny_face_weights, "cpu")
    assert encoder is load_face_encoder(tiny_face_weights, "cpu")
    assert encoder.name.startswith("inception ")
    assert "MTCNN crop 160 px, margin 0" in encoder.name
    assert "/" not in encoder.name


def test_missing_weights_say_what_goes_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Offline, the message names the file, the folder and the size; where weights come later, the name is enough."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for encoder, file in (
        ("vggface2", "20180402-114759-vggface2.pt"),
        ("casia-webface", "20180408-102900-casia-webface.pt"),
    ):
        with pytest.raises(ValueError, match=rf"{file} \(about 11\d MB\) in {tmp_path}/checkpoints"):
            check_face_encoder(encoder)
        check_face_encoder(encoder, weights_present=False)


def test_weights_put_there_by_hand_are_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_face_weights: str
) -> None:
    """A file placed where the message says is found and loaded."""
    from evaluation.face import _load_face_encoder

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(load_file(tiny_face_weights), tmp_path / "checkpoints" / "20180402-114759-vggface2.pt")
    check_face_encoder("vggface2")
    assert _load_face_encoder.__wrapped__("vggface2", "cpu").name.startswith("vggface2 ")


def test_files_that_are_no_weights_are_refused(tmp_path: Path, tiny_face_weights: str) -> None:
    """A half file, another network's weights, another thing in a pickle, a folder or a name of nothing."""
    whole = Path(tiny_face_weights).read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "half.pt").write_bytes(b"half")
    torch.save([1, 2], tmp_path / "list.pt")
    save_file({"fc.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    (tmp_path / "folder").mkdir()
    for name in ("half.safetensors", "half.pt", "list.pt", "other.safetensors", "folder", "nothing"):
        with pytest.raises(ValueError, match=name):
            check_face_encoder(str(tmp_path / name))
    with pytest.raises(ValueError, match="vggface2, casia-webface, dlib"):
        check_face_encoder("vggface")


def test_a_network_with_missing_layers_is_refused(tmp_path: Path) -> None:
    """The right head on other layers does not fit."""
    save_file({"last_linear.weight": torch.zeros(128, 1792)}, tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match="does not fit InceptionResnetV1"):
        load_face_encoder(str(tmp_path / "head.safetensors"), "cpu")
