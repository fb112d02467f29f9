"""What is sent to a cluster: all that the sweep names, nothing else, as the same experiment. No Ray.

pytest tests/sweeps/clusters/test_parcel.py     a few seconds
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sweeps.clusters import parcel
from sweeps.clusters.parcel import GPS_TAG, Parcel, pack_sweep
from sweeps.config import SweepConfig, load_sweep
from sweeps.execution.gauges import sweep_id
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import claim_initial_weights, claim_subject, evaluation_key, photos_key
from sweeps.search.starts import starts_of
from tests.sweeps.fake_run import build_run
from tests.sweeps.tiny_sweep import write_sweep
from tests.tiny_models import build_peft_lora
from training.errors import UserError
from training.lora_file import read_lora_file
from training.lora_names import PEFT_CONFIG, PEFT_FILE

OUT = "/mnt/dreamsweep/runs"
LORA_ALONE = {"lora": {"rank": 2, "max_train_steps": 4}}
Pack = Callable[..., tuple[SweepConfig, Parcel]]


@pytest.fixture
def desk(tmp_path: Path, photos: Path) -> Path:
    """A user's folder with photos and a caption, and things that are nobody's business."""
    folder = tmp_path / "desk"
    shutil.copytree(photos, folder / "photos")
    (folder / "photos" / "photo_0.txt").write_text("a photo of sks woman, smiling")
    (folder / "photos" / ".secret").write_text("my own business")
    (folder / "photos" / "notes.md").write_text("my own business")
    return folder


@pytest.fixture
def pack(desk: Path, tmp_path: Path, tiny_mapping: dict[str, Any]) -> Pack:
    """Pack the tiny sweep with whole sections replaced, into `tmp_path/parcel`; the sweep as it is there."""

    def call(**sections: Any) -> tuple[SweepConfig, Parcel]:
        subject = {**tiny_mapping["subject"], "photos": "photos"}
        sweep = write_sweep(desk / "ada.yaml", {**tiny_mapping, "subject": subject, **sections})
        into = tmp_path / "parcel"
        into.mkdir()
        packed = pack_sweep(load_sweep(sweep), desk, OUT, into)
        return load_sweep(into / "sweep.yaml"), packed

    return call


def test_a_sweep_is_the_same_experiment_there(pack: Pack, tmp_path: Path, desk: Path) -> None:
    """Photos, captions and evaluation have the identity that they have here, so runs there go on from any upload."""
    there, packed = pack()
    assert photos_key(there.subject, None) == photos_key(packed.config.subject, None)
    assert evaluation_key(there.evaluation) == evaluation_key(packed.config.evaluation)
    assert there.subject.photos == tmp_path / "parcel" / "photos"
    assert (there.subject.photos / "photo_0.txt").read_text() == (desk / "photos" / "photo_0.txt").read_text()


def test_nothing_else_of_a_folder_is_sent(pack: Pack, tmp_path: Path) -> None:
    """Hidden files and files that no run reads stay at home, and nobody but the user may read what is sent."""
    pack()
    sent = [path for path in (tmp_path / "parcel").rglob("*") if path.is_file()]
    assert not [path for path in sent if b"my own business" in path.read_bytes()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in sent} == {0o600}


def test_its_id_is_the_one_in_rays_metrics(pack: Pack, tmp_path: Path) -> None:
    """One word for a run, in the list of jobs and in the gauges; without the photos nobody finds the name in it."""
    _, packed = pack()
    folder = RunFolder(tmp_path / packed.config.name)
    claim_subject(folder, packed.config.subject, None, "sks")
    assert packed.sweep == sweep_id(folder)


def test_small_models_are_sent_and_found_by_content(pack: Pack, tmp_path: Path, tiny_base: str) -> None:
    """A local model goes with the sweep, to a place that all machines see and that its content names."""
    there, packed = pack()
    places = {there.base_model, there.evaluation.face.encoder, there.evaluation.clip.model.removeprefix("local-dir:")}
    assert set(packed.models.values()) == places
    assert all(place.startswith(f"{OUT}/.models/") for place in places)
    sent = {there: tmp_path / "parcel" / within for within, there in packed.models.items()}[there.base_model]
    assert sent.name == Path(tiny_base).name
    for file in Path(tiny_base).rglob("*.safetensors"):
        assert (sent / file.relative_to(tiny_base)).read_bytes() == file.read_bytes()


def test_large_models_must_be_on_the_cluster(pack: Pack, monkeypatch: pytest.MonkeyPatch, tiny_base: str) -> None:
    """Past the limit a local model is refused with law, value and place."""
    monkeypatch.setattr(parcel, "MAX_MODELS_BYTES", 1000)
    with pytest.raises(
        UserError, match=rf"base_model: local models of up to 1\.0 kB in all are sent, with {tiny_base}"
    ):
        pack()


def test_a_base_model_may_lie_on_the_cluster_alone(pack: Pack) -> None:
    """An absolute path that is not here is the cluster's, stays as it is, and is said not to have been looked at."""
    there, packed = pack(base_model="/mnt/models/sd15")
    assert there.base_model == "/mnt/models/sd15"
    assert any("base_model /mnt/models/sd15" in remark for remark in packed.remarks)


def test_a_lora_to_go_on_from_may_lie_on_the_cluster_alone(pack: Pack) -> None:
    """As a base model may; here trials are held against no file."""
    there, packed = pack(initial_weights="/mnt/loras/ada.safetensors")
    assert there.initial_weights == Path("/mnt/loras/ada.safetensors")
    assert any("initial_weights /mnt/loras/ada.safetensors" in remark for remark in packed.remarks)


@pytest.mark.parametrize(
    ("key", "path"), [("base_model", "./models/sd15"), ("initial_weights", "start/ada.safetensors")]
)
def test_a_missing_model_of_ones_own_is_refused(pack: Pack, key: str, path: str) -> None:
    """A path below the sweep file's folder is this machine's, and must be there."""
    with pytest.raises(UserError, match=key):
        pack(**{key: path})


def test_photos_must_be_here(pack: Pack, desk: Path, tiny_mapping: dict[str, Any]) -> None:
    """The verb sends them: those that are not here are refused."""
    with pytest.raises(UserError, match="no such folder"):
        pack(subject={**tiny_mapping["subject"], "photos": "/mnt/photos/ada"})


def test_with_a_storage_no_model_can_be_sent(pack: Pack) -> None:
    """There is no folder there that all machines see."""
    with pytest.raises(UserError, match="base_model: with a storage"):
        pack(storage="s3://bucket/runs")


def test_references_and_controls_are_sent(
    pack: Pack, desk: Path, tiny_mapping: dict[str, Any], tiny_controlnet: str
) -> None:
    """Held-out photos and control pictures too; two of one name are two."""
    for folder in ("a", "b"):
        (desk / folder).mkdir()
        shutil.copyfile(desk / "photos" / "photo_1.png", desk / folder / "pose.png")
    face = {**tiny_mapping["evaluation"]["face"], "references": "photos"}
    there, _ = pack(
        evaluation={**tiny_mapping["evaluation"], "face": face},
        render={"references": ["a/pose.png", "b/pose.png"], "controlnet": tiny_controlnet},
    )
    assert there.render is not None
    assert len(set(there.render.references)) == 2
    assert all(reference.is_file() for reference in there.render.references)
    assert there.evaluation.face.references is not None
    assert len(list(there.evaluation.face.references.glob("*.*"))) == 7


def test_a_lora_to_go_on_from_is_sent_with_all_that_says_what_it_is(
    pack: Pack, desk: Path, tmp_path: Path, tiny_base: str
) -> None:
    """Of a file of peft's the config too, which has its alphas: unpacked, it is read to the same LoRA."""
    file = build_peft_lora(desk / "start", tiny_base)
    (desk / "start" / "notes.json").write_text("my own business")
    there, _ = pack(initial_weights="start/adapter_model.safetensors", methods=LORA_ALONE)
    assert there.initial_weights is not None
    assert there.initial_weights.is_relative_to(tmp_path / "parcel")
    assert {each.name for each in there.initial_weights.parent.iterdir()} == {PEFT_FILE, PEFT_CONFIG}
    claims = []
    for name, start in (("here", file), ("there", there.initial_weights)):
        folder = RunFolder(tmp_path / name)
        claim_initial_weights(folder, start)
        claims.append(folder.identity())
    assert claims[0] == claims[1]
    here, sent = read_lora_file(file, tiny_base), read_lora_file(there.initial_weights, tiny_base)
    assert sent.unet.keys() == here.unet.keys()
    for path, layer in here.unet.items():
        assert torch.equal(sent.unet[path].delta(), layer.delta())


def test_a_run_to_start_from_is_sent_without_its_pictures(pack: Pack, tmp_path: Path) -> None:
    """The same first trials there as here, by its settings and scores alone."""
    other = build_run(tmp_path / "other", num_trials=4)
    lora = {"rank": {"choices": [2, 4, 16, 128]}, "learning_rate": {"low": 1e-6, "high": 1e-1, "log": True}}
    there, packed = pack(
        methods={"lora": {**lora, "max_train_steps": 4}},
        search={"sampler": "tpe", "num_trials": 9, "warm_start": str(other)},
    )
    assert there.search.warm_start == tmp_path / "parcel" / "warm_start"
    assert starts_of(there) == starts_of(packed.config)
    assert starts_of(there)
    sent = {path.suffix for path in there.search.warm_start.rglob("*") if path.is_file()}
    assert sent == {".yaml", ".json"}


def test_a_position_in_a_photo_is_said_and_the_photo_left_as_it_is(pack: Pack, desk: Path, tmp_path: Path) -> None:
    """A run is known by its photos' bytes; who sends where they were taken is told so."""
    photo = desk / "photos" / "photo_2.jpg"
    with Image.open(photo) as picture:
        exif = picture.getexif()
        exif.get_ifd(GPS_TAG)[1] = "N"
        exif[GPS_TAG] = {1: "N", 2: (52.0, 31.0, 12.0)}
        picture.save(photo, exif=exif, quality=95)
    _, packed = pack()
    assert [remark for remark in packed.remarks if "photo_2.jpg" in remark and "GPS" in remark]
    assert (tmp_path / "parcel" / "photos" / "photo_2.jpg").read_bytes() == photo.read_bytes()


def test_a_parcel_has_a_limit(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's head holds it in memory: more than it takes is refused before it is sent."""
    monkeypatch.setattr(parcel, "MAX_BYTES", 2000)
    with pytest.raises(UserError, match=r"may have 2\.0 kB in all"):
        pack()
