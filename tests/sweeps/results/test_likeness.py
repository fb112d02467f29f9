"""Laws of the calibrated scale, of faces that are missing, and of what a sweep can see."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evaluation.scores import ImageScore, ReferencePhotos
from sweeps.results.leaderboard import Row, calibration_of, memorisation_gap
from sweeps.results.power import TYPICAL, Design, design_to_tell, half_width, noise_of_base, smallest_visible

PHOTOS = ReferencePhotos(num_used=5, similarities=(0.90, 0.92, 0.88, 0.91, 0.89))


def row(trial: str, similarities: list[float | None], no_face: float = 0.1, trained: float | None = None) -> Row:
    images = tuple(
        ImageScore(
            file=f"{place:03d}-0.png",
            face_similarity=similarity,
            prompt_alignment=0.3,
            num_faces=0 if similarity is None else 1 + (place == 1),
            face_width=None if similarity is None else 100.0 + place,
            trained_similarity=None if similarity is None or trained is None else similarity + trained,
        )
        for place, similarity in enumerate(similarities)
    )
    counted = [image.counted(no_face) for image in images]
    return Row(
        trial=trial,
        method="base" if trial == "base" else "lora",
        rank=None,
        learning_rate=None,
        seed=None,
        status="finished",
        step=0,
        checkpoint=None,
        images=None,
        face_similarity=sum(counted) / len(counted),
        prompt_alignment=0.3,
        num_images=len(images),
        num_faces=sum(image.num_faces > 0 for image in images),
        image_scores=images,
        no_face_similarity=no_face,
    )


def test_the_scale_goes_from_the_base_model_to_another_real_photo() -> None:
    """Whatever the encoder's own scale is: a linear change of all similarities changes no likeness."""
    base, model = row("base", [0.0, 0.2, 0.1]), row("a", [0.5, 0.7, 0.3])
    calibration = calibration_of(base, PHOTOS)
    assert calibration is not None
    assert calibration.likeness(base.face_similarities) == pytest.approx(0.0)
    assert calibration.likeness(dict.fromkeys(base.face_similarities, 0.9)) == pytest.approx(1.0)
    likeness = model.model_copy(update={"calibration": calibration}).likeness
    of_others = {"base": [0.0, 0.2, 0.1], "a": [0.5, 0.7, 0.3]}
    squeezed = [row(name, [0.8 + 0.1 * value for value in values]) for name, values in of_others.items()]
    photos = PHOTOS.model_copy(update={"similarities": tuple(0.8 + 0.1 * each for each in PHOTOS.similarities)})
    other = calibration_of(squeezed[0], photos)
    assert other is not None
    assert other.likeness(squeezed[1].face_similarities) == pytest.approx(likeness)


def test_a_first_look_is_measured_from_the_same_pictures_of_the_base_model() -> None:
    """Prompts are not alike: half of the pictures have half of the base model's."""
    base = row("base", [0.0, 0.4])
    calibration = calibration_of(base, PHOTOS)
    assert calibration is not None
    assert calibration.likeness({"001-0.png": 0.4}) == pytest.approx(0.0)
    assert calibration.likeness({"elsewhere.png": 0.4}) is None


def test_there_is_no_scale_without_length() -> None:
    """Too few photos to say how alike they are, or a base model that is as like the person as they among themselves."""
    assert calibration_of(row("base", [0.1]), PHOTOS.model_copy(update={"similarities": (0.9, 0.9, 0.9)})) is None
    assert calibration_of(row("base", [0.88, 0.89]), PHOTOS) is None
    assert row("a", [0.5]).likeness is None


def test_a_missing_face_is_worth_a_stranger_and_counted_apart() -> None:
    """The mean over faces found does not hide it, and neither does the mean over all."""
    found = row("a", [0.9, None, 0.7, 0.8], no_face=0.86)
    assert found.face_similarity == pytest.approx((0.9 + 0.86 + 0.7 + 0.8) / 4)
    assert found.failure_rate == pytest.approx(0.25)
    assert found.face_similarity_of_faces == pytest.approx(0.8)
    assert found.face_width == pytest.approx(102.0)
    assert row("a", [0.9, 0.8]).num_several_faces == 1
    assert row("a", [None, None]).face_similarity_of_faces is None


def test_the_memorisation_gap_is_beyond_the_base_models() -> None:
    """Which photos are which moves every model's difference alike."""
    gap = memorisation_gap(row("a", [0.5, 0.6], trained=0.08), row("base", [0.1, 0.2], trained=0.06))
    assert gap == pytest.approx(0.02)
    assert row("a", [0.5, 0.6, None], trained=0.08).trained_similarity == pytest.approx(0.63)
    assert row("a", [0.5]).trained_similarity is None
    assert memorisation_gap(row("a", [0.5]), row("base", [0.1])) is None


def test_more_of_everything_sees_smaller_differences() -> None:
    """Pictures, prompts and seeds; and more comparisons see less."""
    design = Design(seeds=3, prompts=12, images_per_prompt=1, num_settings=3)
    seen = smallest_visible(TYPICAL, design, 3)
    assert half_width(TYPICAL, design, 3) < seen
    for more in ({"seeds": 6}, {"prompts": 48}):
        assert smallest_visible(TYPICAL, replace(design, **more), 3) < seen
    assert smallest_visible(TYPICAL, design, 1) < seen
    assert smallest_visible(replace(TYPICAL, seed=0.0), design, 3) < seen


def test_what_is_advised_would_tell_the_difference() -> None:
    """And what no reasonable number of trainings would tell is not promised."""
    design = Design(seeds=3, prompts=12, images_per_prompt=1, num_settings=3)
    wanted = design_to_tell(0.12, TYPICAL, design, 3)
    assert wanted is not None
    assert half_width(TYPICAL, wanted, 3) < 0.12 <= half_width(TYPICAL, design, 3)
    assert (wanted.prompts, wanted.num_settings) == (design.prompts, design.num_settings)
    assert design_to_tell(0.001, TYPICAL, design, 3) is None


def test_the_base_models_noise_is_measured_where_it_can_be() -> None:
    """From two pictures or more of each of two prompts; else what is typical stands for it."""
    assert noise_of_base(row("base", [0.1, 0.2])) is TYPICAL
    base = row("base", [0.1, 0.2])
    places = [(prompt, noise) for prompt in range(4) for noise in range(3)]
    images = tuple(
        ImageScore(file=f"{prompt:03d}-{noise}.png", face_similarity=0.3 * prompt + 0.02 * noise, num_faces=1)
        for prompt, noise in places
    )
    noise = noise_of_base(base.model_copy(update={"image_scores": images}))
    assert noise.picture == pytest.approx(0.02 * 2**0.5)
    assert noise.prompt > 0.3
    assert noise.seed == TYPICAL.seed
