"""Plain Ray Tune on the same sweep, as its guides teach it: `python -m tests.chaos.ray_side PLAN.json [ADDRESS]`.

A class Trainable that saves and loads through Tune, up to three failures a trial, and after the death of a driver
`Tuner.restore`. The training loop, its verified checkpoints and the scoring are this project's, so that only the layer
between differs. Nothing of `sweeps` is imported here: it sets what Tune reads from the environment.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune

from tests.chaos.log import PACE_SECONDS, write_down

MAX_FAILURES = 3


class PlainTrial(tune.Trainable):  # type: ignore[misc]  # Ray ships no types
    """Train up to the next scoring point, score it, report it; state goes through Tune's checkpoints."""

    def setup(self, config: dict[str, Any]) -> None:
        """Nothing heavy before the first step, as in the product."""
        from pydantic import TypeAdapter

        from evaluation.config import EvaluationConfig
        from training.config import MethodConfig

        self._plan: dict[str, Any] = config["plan"]
        self._name: str = config["trial"]["name"]
        self._hyperparameters = TypeAdapter(MethodConfig).validate_python(config["trial"]["config"])
        self._evaluation = EvaluationConfig.model_validate(self._plan["evaluation"])
        self._work = Path(tempfile.mkdtemp(prefix="plain-trial-"))
        self._resume_from: Any = None
        self._points: Any = None
        self._newest: Any = None

    def step(self) -> dict[str, Any]:
        """One scoring point."""
        import torch

        from training.config import scoring_steps
        from training.dataset import load_dataset
        from training.train import train

        if self._points is None:
            torch.set_num_threads(1)
            self._points = train(
                self._hyperparameters,
                load_dataset(self._plan["dataset"], self._plan["base_model"]),
                self._evaluation.at_steps,
                self._resume_from,
                out_dir=self._work,
                device="cpu",
                on_step=self._took_a_step,
            )
        self._newest = next(self._points)
        score = self._score()
        self._say("saving", self._newest.step)
        time.sleep(PACE_SECONDS)
        last = scoring_steps(self._evaluation.at_steps, self._hyperparameters.max_train_steps)[-1]
        return {"trial": self._name, "step": self._newest.step, **score, "done": self._newest.step == last}

    def _took_a_step(self, step: int, _loss: float) -> None:
        self._say("step", step, node=ray.get_runtime_context().get_node_id())
        time.sleep(PACE_SECONDS)

    def _score(self) -> dict[str, float]:
        from evaluation.face_encoders import load_face_encoder
        from evaluation.generate import generate, generation_dtype, load_images, save_images
        from evaluation.prompt import load_clip
        from evaluation.references import References
        from evaluation.score import score_images
        from training.checkpoint import load_pipeline

        evaluation, images_dir = self._evaluation, self._newest.dir / "images"
        pipeline = load_pipeline(
            self._newest, self._plan["base_model"], device="cpu", dtype=generation_dtype("cpu"), share_frozen=True
        )
        save_images(generate(pipeline, evaluation), images_dir, evaluation, model=self._name)
        score = score_images(
            load_images(images_dir, evaluation),
            References.load(Path(self._plan["dataset"]) / "reference_embedding.safetensors"),
            load_face_encoder(evaluation.face.encoder, "cpu"),
            load_clip(evaluation.clip, "cpu"),
            self._plan["rare_token"],
        )
        assert score.prompt_alignment is not None
        return {"face_similarity": score.face_similarity, "prompt_alignment": score.prompt_alignment}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Weights, optimizer, schedule and pictures."""
        shutil.copytree(self._newest.dir, Path(checkpoint_dir) / self._newest.dir.name)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Go on from it. One that fails its own checksums is not trained from: the trial begins anew."""
        from training.checkpoint import latest_checkpoint

        shutil.copytree(checkpoint_dir, self._work, dirs_exist_ok=True)
        self._resume_from = latest_checkpoint(self._work, self._plan["base_model"])
        if self._resume_from is None:
            print(f"{self._name}: {checkpoint_dir} is damaged, training begins anew", file=sys.stderr)  # noqa: T201

    def cleanup(self) -> None:
        """Let go of the working copy."""
        shutil.rmtree(self._work, ignore_errors=True)

    def _say(self, event: str, step: int, **facts: Any) -> None:
        write_down(self._plan["run_dir"], event, trial=self._name, step=step, **facts)


class Scribe(tune.Callback):  # type: ignore[misc]  # Ray ships no types
    """Writes down what Tune's driver itself has taken note of: a point counts once Tune has its checkpoint."""

    def __init__(self, run_dir: str) -> None:
        self._run_dir = run_dir

    def on_checkpoint(self, trial: Any, **_: Any) -> None:
        """Tune has the trial's newest checkpoint."""
        result = trial.last_result
        self._say("scored", trial, face=result["face_similarity"], prompt=result["prompt_alignment"])

    def on_trial_complete(self, trial: Any, **_: Any) -> None:
        """Tune counts the trial as ended."""
        self._say("ended", trial)

    def _say(self, event: str, trial: Any, **facts: Any) -> None:
        write_down(self._run_dir, event, trial=trial.config["trial"]["name"], step=trial.last_result["step"], **facts)


def main(plan_file: str, address: str = "local") -> None:
    """Run the sweep, or go on with it; ends with 1 where a trial is lost."""
    plan = json.loads(Path(plan_file).read_text())
    run_dir = Path(plan["run_dir"])
    ray.init(address=address, log_to_driver=False)
    trainable = tune.with_resources(PlainTrial, {"cpu": 1})
    space = {"trial": tune.grid_search(plan["trials"]), "plan": plan}
    if tune.Tuner.can_restore(str(run_dir)):
        tuner = tune.Tuner.restore(
            str(run_dir), trainable, param_space=space, resume_unfinished=True, resume_errored=True
        )
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(metric="face_similarity", mode="max", max_concurrent_trials=2),
            run_config=tune.RunConfig(
                name=run_dir.name,
                storage_path=str(run_dir.parent),
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, checkpoint_at_end=True),
                callbacks=[Scribe(str(run_dir))],
                verbose=1,
            ),
        )
    results = tuner.fit()
    finished = [result for result in results if result.error is None and (result.metrics or {}).get("done")]
    best = results.get_best_result(scope="all") if finished else None
    champion = None
    if best is not None and "face_similarity" in best.metrics_dataframe:  # what could not be written has no columns
        row = best.metrics_dataframe.sort_values(["face_similarity", "step"], ascending=[False, True]).iloc[0]
        champion = {
            "trial": best.config["trial"]["name"],
            "step": int(row["step"]),
            "face": float(row["face_similarity"]),
            "prompt": float(row["prompt_alignment"]),
        }
    said = {"finished": [result.config["trial"]["name"] for result in finished], "champion": champion}
    Path(f"{run_dir}.outcome.json").write_text(json.dumps(said))
    if len(finished) < len(plan["trials"]):
        sys.exit(f"{len(plan['trials']) - len(finished)} of the trials are not finished")


if __name__ == "__main__":
    from tests.chaos.ray_side import main as importable_main  # so that workers can import PlainTrial by its name

    importable_main(*sys.argv[1:])
