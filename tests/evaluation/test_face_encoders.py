"""Laws of the face encoders: the real detectors on the one face that scikit-image ships, and the weights of all.

`pytest tests/evaluation/test_face_encoders.py`, half a minute. Embedding weights are random; `test_real_faces.py` has
real ones, `test_drawn_face.py` those of the demo.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from evaluation.face import face_boxes
from evaluation.face_encoders import _load_face_encoder, check_face_encoder, load_face_encoder
from evaluation.facenet import FacenetEncoder


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
        assert face_boxes(judge, image) == [face.box for face in faces]


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
    assert face_boxes(judge, Image.new("RGB", size)) == []


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
    """A file placed where the message says is found and loaded, also beside a folder that happens to have the name."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vggface2").mkdir()
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
