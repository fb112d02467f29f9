"""Which trainings of a pack share a pass."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from training.config import LoraConfig
from training.dataset import Dataset
from training.flops import flops_of
from training.packing import MOST_PADDING, passes_of, training_cost
from training.passes import Pass


def sd15(rank: int) -> float:
    """TFLOP of a sample of Stable Diffusion 1.5 at 512 px, forward and backward (`test_flops.py`)."""
    return 1.711 + 0.00085 * rank


ranks = st.lists(st.integers(1, 512), min_size=1, max_size=12)


@given(ranks, st.integers(1, 16))
@example([2, 16, 128, 64, 4], 8)
def test_every_training_has_one_pass_and_little_is_spent_on_padding(given_ranks: list[int], largest: int) -> None:
    """No pass is too large, and rows keep their order."""
    passes = passes_of(given_ranks, sd15, largest)
    assert sorted(place for places in passes for place in places) == list(range(len(given_ranks)))
    for places in passes:
        assert places == sorted(places)
        assert len(places) <= largest
        own = [given_ranks[place] for place in places]
        assert len(own) * sd15(max(own)) <= (1 + MOST_PADDING) * sum(map(sd15, own)) + 1e-9
    assert passes == passes_of(given_ranks, sd15, largest)


def test_ranks_that_people_compare_fit_into_one_pass() -> None:
    """Of rank 2 to 128; one of 256 beside small ones does not."""
    assert passes_of([2, 4, 16, 64, 128], sd15, 8) == [[0, 1, 2, 3, 4]]
    assert passes_of([2, 256, 4, 8], sd15, 8) == [[0, 2, 3], [1]]
    assert passes_of([4] * 5, sd15, 2) == [[0, 1], [2, 3], [4]]


def test_the_cost_is_that_of_the_very_training(dataset: Dataset) -> None:
    """At the photos' resolution, with or without gradient checkpointing."""
    for gradient_checkpointing in (False, True):
        config = LoraConfig(gradient_checkpointing=gradient_checkpointing)
        asked = Pass("unet", 64, 64, 7, True, gradient_checkpointing)
        costs = flops_of([asked], dataset.base_model)
        assert costs is not None
        assert training_cost(config, dataset)(7) == costs[asked]
