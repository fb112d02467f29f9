"""The sweep file that `dreamsweep init` writes: whatever the photos, it loads, passes its check and fits the budget.

pytest tests/sweeps/init     half a minute, no models but the demo's face encoder
"""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sweeps.clusters.machine import Gpu
from sweeps.config import SweepConfig, load_sweep
from sweeps.confirm import SITUATIONS
from sweeps.demo import demo_sweep_file
from sweeps.init import write
from sweeps.init.budget import SIZES, USUAL, Size, estimate, largest_that_fits, parse_budget
from sweeps.init.photos import look_at_photos
from sweeps.init.prompts import IDEAS, prompts_for
from sweeps.init.speed import A100, TESLA_T4, published_speed, speed_of_run
from sweeps.init.write import Wanted, Written, write_sweep
from sweeps.plan import check_sweep
from sweeps.priors import PUBLISHED
from sweeps.prompts import STABLE_DIFFUSION_15
from sweeps.search.starts import starts_of
from sweeps.space import corners_of
from tests.sweeps.command import Command
from tests.sweeps.fake_run import build_run
from training.errors import UserError

ADA = Wanted("woman", "sks")
DEMO = demo_sweep_file().parent
T4 = Gpu("Tesla T4", 15_360, 0, "550")
SMALL = Gpu("NVIDIA GeForce RTX 3060 Ti", 8_192, 0, "550")
H200 = Gpu("NVIDIA H200", 143_771, 0, "550")


def take_photos(folder: Path, number: int, size: tuple[int, int], seed: int = 0) -> Path:
    """Noise in large patches: sharp, each another, and of any size."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(number):
        patches = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        patches.resize(size, Image.Resampling.NEAREST).save(folder / f"{i:02d}.png")
    return folder


def written(folder: Path, *gpus: Gpu, budget: float | None = None, wanted: Wanted = ADA) -> Written:
    return write_sweep(look_at_photos(folder), wanted, gpus, published_speed(gpus), budget)


def as_file(text: str, folder: Path) -> SweepConfig:
    folder.mkdir(exist_ok=True)
    (folder / "sweep.yaml").write_text(text, encoding="utf-8")
    return load_sweep(folder / "sweep.yaml")


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_photos_the_file_loads_and_passes_its_check(seed: int, tmp_path: Path) -> None:
    """Any number of photos, size, name, class, machine and budget: what is written is a sweep without a warning."""
    rng = random.Random(seed)
    name = rng.choice(["ada", "10_ohwx woman", "# no: comment", "no", "1e5", "Zoë", "a'b\"c", "{x}"])
    side = rng.choice([(130, 128), (400, 700), (512, 512), (900, 600)])
    folder = take_photos(tmp_path / name, rng.randint(5, 14), side, seed)
    word = rng.choice(["woman", "old man", "person", "no", "null"])
    gpus = rng.choice([(), (T4,), (SMALL,), (H200, H200)])
    budget = rng.choice([None, 12 * 3600.0, 300 * 3600.0])
    made = written(folder, *gpus, budget=budget, wanted=Wanted(word, rng.choice(["sks", "ohwx", "zwx person7"])))
    config = as_file(made.text, tmp_path / "elsewhere")
    assert config == made.config
    plan = check_sweep(config)
    assert plan.warnings == ()
    assert plan.starts
    assert Path(config.subject.photos) == folder.resolve()
    assert config.evaluation.images_per_prompt == 4
    assert config.subject.resolution <= 512
    if budget is not None:
        assert made.estimate.seconds <= budget


def test_the_same_photos_give_the_same_file(tmp_path: Path) -> None:
    """Byte for byte, in another process too: nothing of the clock or of the order of a set is in it."""
    folder = take_photos(tmp_path / "ada", 6, (600, 512))
    (folder / "00.txt").write_text("sks woman at a castle in the rain")
    command = [sys.executable, "-m", "sweeps", "init", str(folder), "--class-word", "woman"]
    first, second = (subprocess.run(command, capture_output=True, check=True).stdout for _ in range(2))  # noqa: S603
    assert first == second
    assert first


@pytest.mark.parametrize(
    ("side", "resolution"), [((4000, 3000), 512), ((500, 600), 448), ((300, 300), 256), ((130, 200), 256)]
)
def test_the_resolution_is_what_the_photos_carry(side: tuple[int, int], resolution: int, tmp_path: Path) -> None:
    """The base model's own 512 px and never more; less where the photos have less, down to half of it."""
    folder = take_photos(tmp_path / "ada", 5, side)
    assert look_at_photos(folder).resolution(512) == resolution
    assert written(folder).config.subject.resolution == resolution


def test_a_small_base_model_is_trained_at_its_own_size(tmp_path: Path) -> None:
    """The demo's models and photos: 64 px, and its faces are found by its own encoder."""
    wanted = Wanted(
        "person",
        "sks",
        base_model=str(DEMO / "family" / "base_model"),
        face=str(DEMO / "family" / "face_encoder"),
    )
    made = write_sweep(look_at_photos(DEMO / "photos"), wanted, (), TESLA_T4)
    assert made.config.subject.resolution == 64
    assert 1 <= len(made.config.evaluation.prompts) <= USUAL.num_prompts, "its text encoder reads 32 tokens"
    assert made.remarks == ()
    assert as_file(made.text, tmp_path / "x") == made.config


def test_the_machine_decides_on_memory(tmp_path: Path) -> None:
    """Full DreamBooth where it fits, spared where it hardly does, several on a GPU that holds them."""
    folder = take_photos(tmp_path / "ada", 8, (512, 512))
    none, small, t4, h200 = (written(folder, *gpus).config for gpus in ((), (SMALL,), (T4,), (H200,)))
    assert set(none.methods) == set(t4.methods) == set(h200.methods) == {"lora", "dreambooth"}
    assert set(small.methods) == {"lora"}
    assert none.methods["lora"].get("mixed_precision") is None
    assert {c.methods["lora"]["mixed_precision"] for c in (small, t4, h200)} == {"fp16"}
    assert t4.methods["dreambooth"]["use_8bit_adam"] is True
    assert "use_8bit_adam" not in h200.methods["dreambooth"]
    assert t4.resources.of("dreambooth").gpus == 1
    assert h200.resources.of("dreambooth").gpus == 0.25
    assert none.resources.gpus_per_trial is None


def test_the_space_holds_published_settings(tmp_path: Path) -> None:
    """All of both methods, so that a search begins with them; and none lies at the space's edge alone."""
    config = written(take_photos(tmp_path / "ada", 8, (512, 512)), H200).config
    assert {s.source for s in PUBLISHED if s.held_by(config.methods[s.method]) is not None} == {
        setting.source for setting in PUBLISHED
    }
    assert [start.values["method"] for start in starts_of(config)][:2] == ["lora", "dreambooth"]
    for method, low, high in (("lora", 3e-5, 1e-3), ("dreambooth", 5e-7, 5e-6)):
        rates = corners_of(config.methods[method]["learning_rate"])
        assert low <= rates[0] < rates[1] <= high  # type: ignore[operator]


def test_kohyas_folder_names_the_person(dreamsweep: Command, tmp_path: Path) -> None:
    """`10_ohwx old man` holds token and class; what the user says stands before it."""
    take_photos(tmp_path / "ada" / "10_ohwx old man", 6, (512, 512))
    outcome = dreamsweep("init", tmp_path / "ada")
    assert outcome.code == 0, outcome.err
    config = as_file(outcome.out, tmp_path / "x")
    assert config.subject.instance_prompt == "a photo of ohwx old man"
    assert config.subject.class_prompt == "a photo of an old man"
    assert "60 examples an epoch" in outcome.out
    outcome = dreamsweep("init", tmp_path / "ada", "--class-word", "woman", "--token", "sks")
    assert as_file(outcome.out, tmp_path / "x").subject.instance_prompt == "a photo of sks woman"


def test_prompts_ask_for_what_the_captions_do_not_name() -> None:
    """A place that a photo shows comes last; every prompt names the person; none is the second stage's."""
    first = prompts_for("sks woman", [], 12, STABLE_DIFFUSION_15)
    assert len(set(first)) == 12
    assert all("sks woman" in prompt for prompt in first)
    later = prompts_for("sks woman", ["sks woman on her bicycle, a castle behind"], 12, STABLE_DIFFUSION_15)
    assert set(later) == set(first)
    assert ["bicycle" in prompt or "castle" in prompt for prompt in later] == [False] * 10 + [True] * 2
    held_back = {f"a photo of sks woman {situation}" for situation in SITUATIONS}
    assert not held_back & set(first)
    assert max(size.num_prompts for size in SIZES) <= len(IDEAS)


# --- faces ------------------------------------------------------------------------------------------------------------


def test_faces_are_looked_for_or_it_is_said_that_they_were_not(
    dreamsweep: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the weights a plain word on standard error; with an encoder the photos that have no face."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    outcome = dreamsweep("init", DEMO / "photos", "--class-word", "woman")
    assert outcome.code == 0
    assert "faces were not looked for: the weights of vggface2 are not here" in outcome.err
    photos = tmp_path / "photos"
    shutil.copytree(DEMO / "photos", photos)
    Image.new("RGB", (256, 256), "green").save(photos / "lawn.png")
    outcome = dreamsweep("init", photos, "--class-word", "woman", "--face", DEMO / "family" / "face_encoder")
    assert outcome.code == 0, outcome.err
    assert "photos without a face, cut around their middle instead: lawn.png" in outcome.err
    assert "not looked for" not in outcome.err


def test_real_photos_give_a_sweep(shared_data: Path, dreamsweep: Command, tmp_path: Path) -> None:
    """Five press photos and ten lab photos of 92 px, with a real face encoder."""
    encoder = shared_data / "face_encoders" / "inception_resnet_v1_msceleb_128d_fp16.safetensors"
    for file in (shared_data / "att_faces" / "s3").glob("*.pgm"):
        (tmp_path / "s3").mkdir(exist_ok=True)
        Image.open(file).save(tmp_path / "s3" / f"{file.stem}.png")
    for folder, resolution in ((shared_data / "people" / "obama", 512), (tmp_path / "s3", 256)):
        outcome = dreamsweep("init", folder, "--class-word", "man", "--face", encoder, "--budget", "4h")
        assert outcome.code == 0, outcome.err
        config = as_file(outcome.out, tmp_path / "x")
        assert check_sweep(config).warnings == ()
        assert config.subject.resolution == resolution


# --- budget -----------------------------------------------------------------------------------------------------------


def test_a_larger_budget_never_gives_less(tmp_path: Path) -> None:
    """Trials, steps, scoring points, prompts, methods: each grows or stays, and the estimate stays within."""
    folder = take_photos(tmp_path / "ada", 12, (512, 512))
    before: tuple[int, ...] = ()
    for hours in (1, 1.5, 2, 4, 8, 12, 16, 24, 48, 500):
        made = written(folder, T4, budget=3600.0 * hours) if hours >= 2 or before else None
        if made is None:
            continue
        assert made.estimate.seconds <= 3600 * hours
        plan, config = made.estimate.plan, made.config
        stage = plan.second_stage
        now = (
            len(plan.trials),
            plan.num_steps,
            plan.num_images,
            len(config.evaluation.prompts),
            len(config.methods),
            0 if stage is None else stage.finalists * stage.seeds,
        )
        assert all(more >= less for more, less in zip(now, before, strict=False))
        before = now
    assert before[0] == SIZES[-1].num_trials


def test_each_size_costs_more_than_the_one_before(tmp_path: Path) -> None:
    """So that the last that fits is the largest."""
    photos = look_at_photos(take_photos(tmp_path / "ada", 9, (512, 512)))
    draft = write._Draft(photos, ADA, (T4,), TESLA_T4)
    needed = [estimate(draft.config(size), TESLA_T4, 1).seconds for size in SIZES]
    assert needed == sorted(needed)
    shared, alone = (estimate(draft.config(SIZES[-1]), TESLA_T4, number).seconds for number in (2, 1))
    assert shared == pytest.approx(alone / 2, rel=0.01)  # class images are drawn by one
    with pytest.raises(UserError, match=r"--budget: the least sweep of these photos takes about .*; got 50 s"):
        largest_that_fits(draft.config, TESLA_T4, 1, 50.0)
    assert largest_that_fits(draft.config, TESLA_T4, 1, needed[0])[0] == Size(4, 0.5, 4, dreambooth=False)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("90m", 5400), ("90min", 5400), ("1h30m", 5400), ("2", 7200), ("1.5h", 5400), ("1d", 86_400)],
)
def test_a_budget_is_read_as_people_write_it(text: str, seconds: float) -> None:
    """Hours where no unit is given."""
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "0h", "-2h", "soon", "2 weeks", "h", "1h30", "2h x", "nan", "inf"])
def test_what_is_no_time_is_refused(text: str, dreamsweep: Command) -> None:
    """In one line that names the option and what was given."""
    outcome = dreamsweep("init", DEMO / "photos", "--class-word", "woman", "--budget", text)
    assert outcome.code == 2
    assert "--budget: must be a time such as 2h" in outcome.err
    assert outcome.out == ""


def test_an_earlier_run_says_how_fast_the_machine_is(tmp_path: Path) -> None:
    """The mean of its steps, and a picture by what its trials took beside them; a run without any is refused."""
    run = build_run(tmp_path / "run", num_trials=6)
    speed = speed_of_run(run)
    assert speed.lora_step > 0
    assert speed.dreambooth_step > 0
    assert speed.source == "measured in run"
    for stats in run.glob("trials/*/stats.jsonl"):
        stats.unlink()
    with pytest.raises(UserError, match="--speed-of: needs a run with scored trials"):
        speed_of_run(run)
    with pytest.raises(UserError, match=r"--speed-of: no such run folder: .*nowhere"):
        speed_of_run(tmp_path / "nowhere")


def test_published_speeds_are_those_of_the_slower_machine() -> None:
    """An A100's are for its class alone; whatever is not known is taken to be as slow as a T4."""
    assert published_speed([H200]) is A100
    assert published_speed([]) is published_speed([T4]) is published_speed([H200, SMALL]) is TESLA_T4
    assert A100.picture < TESLA_T4.picture
    assert A100.lora_step < TESLA_T4.lora_step


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--class-word: must be given"),
        (["--class-word", "  "], "--class-word: must be a word"),
        (["--class-word", "sks woman"], "--class-word: must not hold the token 'sks'"),
        (["--class-word", "woman", "--token", "a\nb"], "--token: must be a word"),
        (["--class-word", "woman", "--name", "a b"], "name: must be 1 to 64 letters"),
        (["--class-word", "woman", "--face", "nobody"], "face encoder: need one of"),
        (["--class-word", "woman", "--speed-of", "nowhere"], "--speed-of: no such run folder"),
        (["--class-word", "woman", "--base-model", "./nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_written_is_refused_in_a_line(
    arguments: list[str], named: str, dreamsweep: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 2, the option and the value, and nothing on standard output that a file could be made of."""
    monkeypatch.setattr("sys.stdin", io.StringIO())
    outcome = dreamsweep("init", DEMO / "photos", *arguments)
    assert outcome.code == 2
    assert named in outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(("number", "named"), [(0, "got 0"), (4, "need 5 to 50 pictures, got 4"), (51, "got 51")])
def test_photos_that_are_no_set_are_refused(number: int, named: str, dreamsweep: Command, tmp_path: Path) -> None:
    """As training would refuse them."""
    take_photos(tmp_path / "ada", number, (64, 64))
    outcome = dreamsweep("init", tmp_path / "ada", "--class-word", "woman")
    assert outcome.code == 2
    assert named in outcome.err
