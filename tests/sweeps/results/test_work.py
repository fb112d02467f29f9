"""Laws of the account of work: what a sweep saves, and that its counts follow from its trials. No model is loaded.

pytest -s tests/sweeps/results/test_work.py     half a minute; prints the table of the reference grid
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from evaluation.config import ScreeningConfig
from sweeps.config import SweepConfig, parse_sweep, resolved_yaml
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import trial_id
from sweeps.ledger.records import BASE_TRIAL, Status, TrialRecord
from sweeps.report.page import render_report
from sweeps.results.results import read_results
from sweeps.results.work import CLASS_IMAGE_STEPS, UPSTREAM_CLASS_IMAGE_STEPS, Account, account_of
from sweeps.results.work_file import CountedWork, WorkFile, read_work, work_file, write_work
from sweeps.space import grid
from tests.sweeps.fake_run import write_stats
from tests.sweeps.ledger_entries import entry
from training.base_model import STABLE_DIFFUSION_15
from training.config import MethodConfig
from training.flops import measure

PICTURES = 16
POINTS = {"lora": (250, 500, 750, 1000), "dreambooth": (400, 800, 1200)}


def reference_grid() -> SweepConfig:
    """5 ranks x 3 rates of LoRA and 3 rates of DreamBooth with class images; 16 pictures a point, of 30 steps each."""
    return parse_sweep(
        {
            "name": "grid",
            "base_model": "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "subject": {"photos": "p", "instance_prompt": "a photo of sks woman", "class_prompt": "a photo of a woman"},
            "methods": {
                "lora": {
                    "rank": {"choices": [2, 4, 16, 64, 128]},
                    "learning_rate": {"choices": [5e-5, 1e-4, 2e-4]},
                    "max_train_steps": 1000,
                    "train_batch_size": 1,
                },
                "dreambooth": {
                    "learning_rate": {"choices": [1e-6, 2e-6, 5e-6]},
                    "max_train_steps": 1200,
                    "train_batch_size": 1,
                    "train_text_encoder": True,
                    "with_prior_preservation": True,
                    "num_class_images": 200,
                },
            },
            "search": {"sampler": "grid"},
            "evaluation": {
                "prompts": ["sks woman in a garden", "sks woman in a game", "sks woman as a queen", "sks woman at sea"],
                "images_per_prompt": PICTURES // 4,
                "at_steps": sorted({point for points in POINTS.values() for point in points}),
                "num_inference_steps": 30,
            },
        }
    )


def put_trial(
    folder: RunFolder,
    config: MethodConfig,
    points: Sequence[int],
    status: Status = "finished",
    screened: Collection[int] = (),
) -> None:
    """A trial that was scored at these points, at some of them by a first look."""
    checkpoints = tuple(
        entry(step).model_copy(
            update={"num_images": PICTURES // 4 if step in screened else PICTURES, "screened": step in screened}
        )
        for step in points
    )
    record = TrialRecord(
        trial=trial_id(config),
        method=config.method,
        status=status,
        config=config.model_dump(mode="json"),
        checkpoints=checkpoints,
        seconds=100.0,
    )
    folder.write(record)


def put_shared(folder: RunFolder, sweep: SweepConfig, num_photos: int = 15, num_class_images: int = 200) -> None:
    """What is made once a sweep."""
    folder.dir.mkdir(parents=True, exist_ok=True)
    folder.write_sweep(resolved_yaml(sweep))
    base = entry(0).model_copy(update={"num_images": PICTURES, "checkpoint": None})
    folder.write(
        TrialRecord(trial=BASE_TRIAL, method="base", status="finished", config={}, checkpoints=(base,), seconds=9.0)
    )
    class_images = folder.dataset_dir / "class_images"
    class_images.mkdir(parents=True)
    for number in range(num_class_images):
        (class_images / f"{number:05d}.png").touch()
    photo = {"source": "p.png", "caption": None, "repeats": 1, "face": None, "num_faces": 1, "pixels": ""}
    photos = [{"file": f"photos/{number:03d}.png", **photo} for number in range(num_photos)]
    subject = sweep.subject.model_dump(mode="json", exclude={"photos"})
    (folder.dataset_dir / "dataset.json").write_text(json.dumps({"key": "k", "subject": subject, "photos": photos}))


def trials_of(sweep: SweepConfig) -> list[MethodConfig]:
    return list(grid(sweep.methods, sweep.evaluation.at_steps))


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """The reference grid, run to its end."""
    sweep, folder = reference_grid(), RunFolder(tmp_path / "grid")
    put_shared(folder, sweep)
    for config in trials_of(sweep):
        put_trial(folder, config, POINTS[config.method])
    return folder


def read(folder: RunFolder) -> Account:
    return account_of(read_results(folder.dir))


def priced(account: Account) -> WorkFile:
    """With Stable Diffusion 1.5's real shapes."""
    return work_file(account, measure(account.kinds, STABLE_DIFFUSION_15), {})


def tera(work: CountedWork) -> dict[str, float]:
    assert work.flops is not None
    return {stage: flops / 1e12 for stage, flops in work.flops.items()}


@pytest.mark.slow
def test_the_reference_grid_takes_a_third_of_separate_runs(folder: RunFolder) -> None:
    """18 runs in place of 69, and every score as it would be: no picture, sampler step or training step is left out."""
    work = priced(read(folder))
    assert (work.computed.runs, work.separate_runs.runs) == (18, 69)
    assert work.computed.steps == {"lora": 15_000, "dreambooth": 3_600}
    assert work.separate_runs.steps == {"lora": 37_500, "dreambooth": 7_200}
    for pictures in (work.computed.pictures, work.separate_runs.pictures):
        assert pictures["scoring"] == 69 * PICTURES
        assert pictures["base_model"] == PICTURES
    assert work.computed.samples.vae_encode == 15 + 200, "each photo and each class image once"
    assert work.computed.pictures["class_images"] == 200
    computed, separate = tera(work.computed), tera(work.separate_runs)
    lines = [f"\n{'TFLOP':14}{'computed':>12}{'separate':>12}{'times':>8}"]
    for stage in sorted({*computed, *separate}, key=lambda stage: (stage == "total", stage)):
        mine, other = computed.get(stage, 0), separate.get(stage, 0)
        lines.append(f"{stage:14}{mine:12,.0f}{other:12,.0f}{other / mine:8.2f}")
    sys.stdout.write("\n".join([*lines, work.line(), ""]))
    assert separate["total"] >= 2.9 * computed["total"]
    assert separate["training"] >= 3.5 * computed["training"], "whoever draws the class images, and however often"


@pytest.mark.slow
def test_halving_and_a_first_look_make_it_a_fifth(folder: RunFolder, tmp_path: Path) -> None:
    """Of 15 LoRAs 8, 4 and 4 go on, of 3 DreamBooths 2 and 1; a quarter of all checkpoints is scored in full."""
    go_on = {"lora": (15, 8, 4, 4), "dreambooth": (3, 2, 1)}
    sweep, halved = reference_grid(), RunFolder(tmp_path / "halved")
    screening = ScreeningConfig(images_per_prompt=PICTURES // 16, keep=0.25)
    sweep = sweep.model_copy(update={"evaluation": sweep.evaluation.model_copy(update={"screening": screening})})
    put_shared(halved, sweep)
    by_method: dict[str, list[MethodConfig]] = {"lora": [], "dreambooth": []}
    for config in trials_of(sweep):
        by_method[config.method].append(config)
    num_scored = sum(map(sum, go_on.values()))
    num_in_full = math.ceil(screening.keep * num_scored)
    for method, configs in by_method.items():
        for place, config in enumerate(configs):
            points = [step for step, number in zip(POINTS[method], go_on[method], strict=True) if place < number]
            in_full = {points[-1]} if num_in_full > 0 else set()
            num_in_full -= len(in_full)
            status: Status = "finished" if len(points) == len(POINTS[method]) else "stopped"
            put_trial(halved, config, points, status, screened=set(points) - in_full)
    work = priced(read(halved))
    pictures = work.computed.pictures["scoring"]
    assert pictures == num_scored * PICTURES // 4 + math.ceil(screening.keep * num_scored) * PICTURES * 3 // 4
    assert work.separate_runs.pictures["scoring"] == num_scored * PICTURES, "who runs one draws all of its pictures"
    whole = priced(read(folder)).separate_runs
    assert (whole.runs, whole.pictures["scoring"]) == (69, 69 * PICTURES), "every picture of every point"
    computed, separate = tera(work.computed), tera(whole)
    drawn_once = tera(work.computed)["class_images"] * UPSTREAM_CLASS_IMAGE_STEPS / CLASS_IMAGE_STEPS
    times = separate["total"] / computed["total"]
    times_drawn_once = (separate["total"] - separate["class_images"] + drawn_once) / computed["total"]
    sys.stdout.write(f"\n{times:.2f} times less, {times_drawn_once:.2f} where separate runs share class images\n")
    assert times >= 5


def test_a_sweep_that_was_stopped_early_counts_less(tmp_path: Path) -> None:
    """Only what was computed; what the whole would have taken is what it takes when nothing is stopped."""
    sweep = reference_grid()
    whole, halved = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "halved")
    for each in (whole, halved):
        put_shared(each, sweep)
    for number, config in enumerate(trials_of(sweep)):
        points = [step for step in sweep.evaluation.at_steps if step <= config.max_train_steps]
        put_trial(whole, config, points)
        stopped = number % 2 == 1
        put_trial(halved, config, points[:2] if stopped else points, "stopped" if stopped else "finished")
    all_of_it, some = read(whole), read(halved)
    assert some.computed.steps["lora"] < all_of_it.computed.steps["lora"]
    assert some.computed.passes.total() < all_of_it.computed.passes.total()
    assert some.separate_runs.passes.total() < all_of_it.separate_runs.passes.total()
    line = work_file(some, dict.fromkeys(some.kinds, 1), {}).line()
    assert "times less than separate runs of all trials to their ends" in line
    assert "to their ends" not in work_file(all_of_it, dict.fromkeys(all_of_it.kinds, 1), {}).line()
    assert (some.to_the_end, some.separate_runs_to_the_end) == (all_of_it.computed, all_of_it.separate_runs)
    assert (all_of_it.to_the_end, all_of_it.separate_runs_to_the_end) == (all_of_it.computed, all_of_it.separate_runs)


def test_a_failure_counts_what_it_did_either_way(tmp_path: Path) -> None:
    """Its steps since the newest score are one separate run more, without pictures; no end is imagined for it."""
    sweep, folder = reference_grid(), RunFolder(tmp_path / "run")
    put_shared(folder, sweep)
    config = trials_of(sweep)[0]
    put_trial(folder, config, [250, 500], "failed")
    write_stats(folder.dir, trial_id(config), 1e-4, range(1, 638))
    account = read(folder)
    assert account.computed.steps == {"lora": 637}
    assert account.separate_runs.steps == {"lora": 250 + 500 + 637}
    assert (account.computed.runs, account.separate_runs.runs) == (1, 3)
    assert account.computed.pictures["scoring"] == account.separate_runs.pictures["scoring"] == 2 * PICTURES
    assert (account.to_the_end, account.separate_runs_to_the_end) == (account.computed, account.separate_runs)


def numbers(folder: RunFolder) -> dict[str, int]:
    """Every count of a folder's account under a name of its own."""
    found: dict[str, int] = {}
    for way, work in work_file(read(folder), None, {}).model_dump(exclude={"seconds", "costs"}).items():
        found[f"{way} runs"] = work["runs"]
        for part in ("steps", "pictures", "samples"):
            found |= {f"{way} {part} {name}": number for name, number in work[part].items()}
    return found


def test_counts_are_those_of_the_trials_added_up(folder: RunFolder) -> None:
    """To what is made once a sweep, each trial adds what it adds where it is alone."""
    sweep = reference_grid()

    def counted(name: str, configs: Sequence[MethodConfig]) -> dict[str, int]:
        some = RunFolder(folder.dir.parent / name)
        put_shared(some, sweep)
        for config in configs:
            put_trial(some, config, POINTS[config.method])
        return numbers(some)

    once = counted("once", [])
    alone = [counted(trial_id(config), [config]) for config in trials_of(sweep)]
    whole = numbers(folder)
    assert whole == {
        name: once.get(name, 0) + sum(one.get(name, 0) - once.get(name, 0) for one in alone) for name in whole
    }
    assert whole["computed samples unet_forward"] > once["computed samples unet_forward"] > 0


def test_without_the_base_model_the_counts_stand(folder: RunFolder) -> None:
    """And the sentence says what is known."""
    account = read(folder)
    work = work_file(account, None, {})
    assert work.computed.flops is None
    assert work.computed.samples.unet_backward == 15_000 + 2 * 3_600
    steps = "15,000 of 37,500 LoRA steps and 3,600 of 7,200 DreamBooth steps"
    assert work.line() == steps
    nothing_saved = work.computed.model_copy(update={"flops": {"total": 1}})
    alike = work.model_copy(
        update={
            "computed": nothing_saved,
            "separate_runs": work.separate_runs.model_copy(update={"flops": {"total": 1}}),
        }
    )
    assert alike.line() == steps, "what is not less is not called less"


def test_the_report_says_what_was_saved(folder: RunFolder) -> None:
    """One line, of work.json alone; nothing where there is none, where it is broken, and while trials run."""
    line = "15,000 of 37,500 LoRA steps"
    assert line not in render_report(read_results(folder.dir))
    account = read(folder)
    work = work_file(account, dict.fromkeys(account.kinds, 10**9), {"training": 1.0})
    write_work(folder, work)
    assert read_work(folder) == work
    assert {cost.kind: cost.flops for cost in work.costs} == dict.fromkeys(account.kinds, 10**9)
    assert line in render_report(read_results(folder.dir))
    put_trial(folder, trials_of(reference_grid())[0], [250], "running")
    assert line not in render_report(read_results(folder.dir))
    folder.work_json.write_text("[1, 2]")
    assert read_work(folder) is None
    assert line not in render_report(read_results(folder.dir))
