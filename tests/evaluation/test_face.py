"""Laws of likeness: on embeddings alone. `pytest tests/evaluation/test_face.py`, seconds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.face import Face, face_similarity, largest_first, mean_embedding

vectors = (
    st.lists(st.floats(-1, 1, width=32), min_size=8, max_size=8)
    .map(np.float32)
    .filter(lambda v: np.abs(v).max() > 1e-3)
)


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
