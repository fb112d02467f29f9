"""What options put into a batch: each draws from a stream of its own, so that the rest stays what it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.training.conftest import NUM_CLASS_IMAGES
from training.batches import MAX_EMBEDDINGS, Batch, PromptEncoder, draw_batch
from training.config import DreamBoothConfig, LoraConfig, TrainConfig
from training.dataset import Dataset, box_coverage
from training.stable_diffusion import load_base_model

CPU = torch.device("cpu")
PLAIN = LoraConfig(train_batch_size=3, seed=4)


def drawn(dataset: Dataset, config: TrainConfig, micro_step: int = 2, **options: object) -> Batch:
    return draw_batch(config.model_copy(update=options), dataset, micro_step, 1000)


def with_faces(dataset: Dataset) -> Dataset:
    """A face in the left upper quarter of every photo but the last, which has none."""
    covered = [box_coverage((0.0, 0.0, 0.5, 0.5), 8)] * (len(dataset.repeats) - 1)
    return replace(dataset, face_coverage=torch.stack([*covered, box_coverage(None, 8)]))


@pytest.mark.parametrize(
    "options",
    [{"noise_offset": 0.1}, {"caption_dropout_rate": 0.5}, {"shuffle_caption": True}, {"face_loss_weight": 3.0}],
)
def test_an_option_changes_nothing_but_what_it_is_for(options: dict[str, object], dataset: Dataset) -> None:
    """Latents and timesteps to the bit, and noise and words where it is not about these."""
    plain, batch = drawn(dataset, PLAIN), drawn(with_faces(dataset), PLAIN, **options)
    assert torch.equal(batch.latents, plain.latents)
    assert torch.equal(batch.timesteps, plain.timesteps)
    assert torch.equal(batch.noise, plain.noise) == ("noise_offset" not in options)
    if "caption_dropout_rate" not in options:
        assert batch.prompts == plain.prompts
    assert (batch.cell_weights is None) == ("face_loss_weight" not in options)


def test_offset_noise_moves_whole_channels(dataset: Dataset) -> None:
    """One normal number a channel and picture, times `noise_offset`: the same in every cell, another in every step."""
    offsets = torch.stack(
        [drawn(dataset, PLAIN, step, noise_offset=0.1).noise - drawn(dataset, PLAIN, step).noise for step in range(200)]
    )
    torch.testing.assert_close(offsets, offsets[..., :1, :1].expand_as(offsets), rtol=0, atol=1e-6)
    numbers = offsets[..., 0, 0].flatten()
    assert numbers.unique().numel() == numbers.numel() == 200 * 3 * 4
    assert abs(numbers.mean()) < 4 * 0.1 / 2400**0.5
    assert numbers.std() == pytest.approx(0.1, rel=0.06)


def test_the_class_half_is_untouched_by_options_of_the_subject(dataset: Dataset) -> None:
    """Its words are never dropped, and all of its cells count alike."""
    config = DreamBoothConfig(train_batch_size=2, with_prior_preservation=True, num_class_images=NUM_CLASS_IMAGES)
    batch = drawn(with_faces(dataset), config, caption_dropout_rate=1.0, face_loss_weight=5.0)
    assert batch.prompts == ["", "", dataset.class_prompt, dataset.class_prompt]
    assert batch.cell_weights is not None
    assert torch.equal(batch.cell_weights[2:], torch.ones(2, 1, 8, 8))


# --- faces -------------------------------------------------------------------------------------------------------


def weights_of(dataset: Dataset, weight: float) -> list[tuple[Tensor, bool]]:
    """Of 40 steps' photos: the cells' weights, and whether the photo is shown mirrored."""
    batches = [drawn(with_faces(dataset), PLAIN, step, face_loss_weight=weight) for step in range(40)]
    assert all(batch.cell_weights is not None for batch in batches)
    return [(row[0], bool(row[0, 0, 0] < row[0, 0, -1])) for batch in batches for row in batch.cell_weights]


def test_a_face_counts_as_much_more_as_asked(dataset: Dataset) -> None:
    """Within the box `face_loss_weight` times what is around it, on average 1 in each photo; without a face 1."""
    seen = weights_of(dataset, 3.0)
    for row, _ in seen:
        assert row.mean().item() == pytest.approx(1, abs=1e-6)
    with_face = [row for row, _ in seen if row.max() > row.min()]
    assert 0 < len(with_face) < len(seen)
    for row in with_face:
        assert (row.max() / row.min()).item() == pytest.approx(3.0, rel=1e-5)
        assert (row == row.max()).sum() == 16
    assert all(torch.equal(row, torch.ones(8, 8)) for row, _ in seen if row.max() == row.min())


def test_a_mirrored_photos_face_is_mirrored(dataset: Dataset) -> None:
    """Where the latents are the mirrored photo's, the weights lie at the right, else at the left."""
    config = PLAIN.model_copy(update={"face_loss_weight": 3.0})
    still = replace(with_faces(dataset), latents=with_faces(dataset).latents)
    assert still.flipped_latents is not None
    still = replace(
        still,
        latents=replace(still.latents, mean=torch.zeros_like(still.latents.mean), std=still.latents.std * 0),
        flipped_latents=replace(
            still.flipped_latents, mean=torch.ones_like(still.latents.mean), std=still.latents.std * 0
        ),
    )
    sides = set()
    for step in range(20):
        batch = draw_batch(config, still, step, 1000)
        assert batch.cell_weights is not None
        for row, latents in zip(batch.cell_weights, batch.latents, strict=True):
            if row.max() > row.min():
                is_right = bool(row[0, 0, -1] > row[0, 0, 0])
                assert is_right == bool(latents.mean() == 1)
                sides.add(is_right)
    assert sides == {True, False}


@pytest.mark.parametrize("cells", [4, 8, 64])
@pytest.mark.parametrize("box", [(0.0, 0.0, 1.0, 1.0), (0.1, 0.23, 0.61, 0.9), (0.5, 0.5, 0.5, 0.5)])
def test_cells_cover_a_box_in_all_by_its_area(box: tuple[float, float, float, float], cells: int) -> None:
    """Each in [0, 1]; rows go down and columns to the right."""
    coverage = box_coverage(box, cells)
    x0, y0, x1, y1 = box
    assert coverage.min() >= 0
    assert coverage.max() <= 1
    assert coverage.mean().item() == pytest.approx((x1 - x0) * (y1 - y0), abs=1e-6)
    if x1 > x0:
        middle = torch.arange(cells).float() + 0.5
        assert (coverage.sum(0) @ middle / coverage.sum() / cells).item() == pytest.approx((x0 + x1) / 2, abs=0.05)
        assert (coverage.sum(1) @ middle / coverage.sum() / cells).item() == pytest.approx((y0 + y1) / 2, abs=0.05)


# --- words -------------------------------------------------------------------------------------------------------


def test_words_that_never_come_again_do_not_fill_the_memory(tiny_base: str) -> None:
    """The newest are kept; one that was let go is encoded again to the same numbers."""
    encode = PromptEncoder(load_base_model(tiny_base), None, CPU)
    first = encode(["person number 0"])
    for number in range(1, MAX_EMBEDDINGS + 40):
        encode([f"person number {number}"])
    assert len(encode._embeddings) == MAX_EMBEDDINGS
    assert "person number 0" not in encode._embeddings
    assert torch.equal(encode(["person number 0"]), first)
