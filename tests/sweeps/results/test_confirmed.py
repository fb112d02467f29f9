"""Laws of the second stage, on records made by hand: who is trained again, and whom that names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from evaluation.scores import CopyCheck, Examination, ImageScore, SecondOpinion
from sweeps.config import ConfirmConfig, SweepConfig, load_sweep
from sweeps.confirm import FRESH_TRAINING_SEEDS, confirm_evaluation, confirm_of
from sweeps.ledger.folder import RunFolder
from sweeps.ledger.identity import trial_id
from sweeps.ledger.records import BASE_TRIAL, ScoredCheckpoint, TrialRecord
from sweeps.results.advice import advice_of
from sweeps.results.champion import Champion
from sweeps.results.finalists import Finalist, read_asked, trainings_of, write_asked
from sweeps.results.leaderboard import rows_of
from sweeps.results.results import Results, read_results
from training.config import LoraConfig
from training.errors import UserError

NUM_PROMPTS, NOISE = 12, 0.02
STEP = 100
RANKS = (2, 4, 16)


def images(mean: float, alignment: float, num_prompts: int, seed: int, first_noise: int = 0) -> tuple[ImageScore, ...]:
    """A picture a prompt; pictures of one prompt and seed are alike in everything but the means."""
    noise = np.random.default_rng(seed).normal(0, NOISE, (num_prompts, 2))
    noise -= noise.mean(axis=0)
    return tuple(
        ImageScore(
            file=f"{prompt:03d}-{first_noise}.png",
            prompt=f"prompt {prompt}",
            seed=first_noise,
            face_similarity=float(mean + noise[prompt, 0]),
            prompt_alignment=float(alignment + noise[prompt, 1] / 2),
            num_faces=1,
        )
        for prompt in range(num_prompts)
    )


def scored(trial: str, step: int, pictures: Sequence[ImageScore], **changes: object) -> ScoredCheckpoint:
    return ScoredCheckpoint(
        step=step,
        checkpoint=None if trial == BASE_TRIAL else f"trials/{trial}/checkpoint-{step}",
        images=f"trials/{trial}/images-{step}",
        face_similarity=float(np.mean([each.face_similarity for each in pictures])),
        prompt_alignment=float(np.mean([each.prompt_alignment for each in pictures])),
        num_images=len(pictures),
        num_faces=len(pictures),
        image_scores=tuple(pictures),
    ).model_copy(update=changes)


def write(folder: RunFolder, config: LoraConfig | None, checkpoint: ScoredCheckpoint | None, **changes: object) -> str:
    trial = BASE_TRIAL if config is None else trial_id(config)
    record = TrialRecord(
        trial=trial,
        method="base" if config is None else "lora",
        status="finished",
        config={} if config is None else config.model_dump(mode="json"),
        checkpoints=() if checkpoint is None else (checkpoint,),
    )
    folder.write(record.model_copy(update=changes))
    return trial


class Run:
    """A run of three ranks, whose finalists' trainings are written one by one."""

    def __init__(self, folder: Path, in_search: Mapping[int, float], confirm: str = "{finalists: 3, seeds: 2}") -> None:
        self.folder = RunFolder(folder)
        folder.mkdir(parents=True)
        (folder / "sweep.yaml").write_text(
            f"""
            name: ada
            base_model: nowhere/base
            subject: {{photos: photos, instance_prompt: a photo of sks woman, class_prompt: a photo of a woman}}
            methods: {{lora: {{rank: {{choices: {sorted(in_search)}}}, learning_rate: 1e-4, max_train_steps: {STEP}}}}}
            search: {{sampler: grid}}
            evaluation: {{prompts: [sks woman in a garden], images_per_prompt: 12, at_steps: [{STEP}]}}
            confirm: {confirm}
            """
        )
        write(self.folder, None, scored(BASE_TRIAL, 0, images(0.1, 0.30, 12, seed=0)))
        self.trials = {
            rank: write(self.folder, self.config(rank), scored(f"r{rank}", STEP, images(mean, 0.30, 12, seed=rank)))
            for rank, mean in in_search.items()
        }

    @staticmethod
    def config(rank: int) -> LoraConfig:
        """The search's trial of a rank."""
        return LoraConfig(rank=rank, learning_rate=1e-4, max_train_steps=STEP)

    def train_again(self, means: Mapping[int, Sequence[float]], alignments: Mapping[int, float] | None = None) -> None:
        """Each rank's trainings with fresh seeds, by their mean face similarity; the base model's pictures too."""
        again = self.folder.confirm
        write(again, None, scored(BASE_TRIAL, 0, images(0.1, 0.30, NUM_PROMPTS, seed=9)))
        for rank, of_seeds in means.items():
            finalist = Finalist(trial=self.trials[rank], step=STEP, seeds=len(of_seeds), images_per_prompt=1)
            trials = {record.trial: record for record in self.folder.trials()}
            for seed, (config, mean) in enumerate(zip(trainings_of(finalist, trials), of_seeds, strict=True)):
                alignment = (alignments or {}).get(rank, 0.30)
                pictures = images(mean, alignment, NUM_PROMPTS, seed=100 * rank + seed)
                assert isinstance(config, LoraConfig)
                write(again, config, scored(trial_id(config), STEP, pictures))

    @property
    def results(self) -> Results:
        """As the folder is now."""
        return read_results(self.folder.dir)

    @property
    def champion(self) -> Champion:
        """As the folder is now."""
        return self.results.champion


def test_the_search_alone_names_a_first_look(tmp_path: Path) -> None:
    """It is never sure, and says what would make it so."""
    run = Run(tmp_path / "ada", {2: 0.5, 4: 0.6, 16: 0.7})
    assert run.champion.row is not None
    assert run.champion.row.rank == 16
    assert run.champion.confirmed is None
    assert not run.champion.is_sure
    advice = advice_of(run.results)
    assert "first look" in advice.how_sure
    assert advice.next_steps[0].command == f"dreamsweep confirm {tmp_path.name}/ada"
    assert [finalist.trial for finalist in run.results.finalists] == [run.trials[rank] for rank in (16, 4, 2)]


def test_the_champion_is_named_from_the_trainings_with_fresh_seeds(tmp_path: Path) -> None:
    """The luckiest of the search is not it; the row keeps what the search had seen, and stands first."""
    run = Run(tmp_path / "ada", {2: 0.5, 4: 0.6, 16: 0.7})
    run.train_again({16: [0.50, 0.52], 4: [0.70, 0.72], 2: [0.40, 0.42]})
    results = run.results
    winner = results.champion
    assert winner.row is not None
    assert winner.row.rank == 4
    assert winner.confirmed is not None
    assert winner.confirmed.face_similarity.mean == pytest.approx(0.71, abs=0.02)
    assert winner.row.face_similarity == pytest.approx(0.6, abs=0.02)
    assert winner.is_sure
    assert [row.rank for row in results.rows if not row.is_base] == [4, 16, 2]
    assert results.rows[0].champion
    assert sum(row.champion for row in results.rows) == 1
    shown = results.rows[0].as_dict()
    assert shown["num_trainings"] == 2
    assert shown["confirmed_face_similarity_low"] < shown["confirmed_face_similarity"]
    assert results.search_rows[0].rank == 16, "the finalists of the search are as they were"
    assert advice_of(results).next_steps[0].command == f"dreamsweep export {tmp_path.name}/ada DEST"


def test_until_every_training_has_ended_the_search_names_it(tmp_path: Path) -> None:
    """Half of the finalists would be compared with the other half's first looks."""
    run = Run(tmp_path / "ada", {2: 0.5, 4: 0.6, 16: 0.7})
    run.train_again({16: [0.50, 0.52], 4: [0.70, 0.72]})
    assert not run.results.confirmations.is_whole
    assert run.champion.row is not None
    assert run.champion.row.rank == 16
    assert "4 of 6 trainings" in advice_of(run.results).why


def test_of_what_cannot_be_told_apart_the_cheaper_is_the_choice(tmp_path: Path) -> None:
    """If it falls short by no more than the margin; by more, the higher one is named and the tie is said."""
    run = Run(tmp_path / "near", {2: 0.7, 4: 0.6, 16: 0.7})
    run.train_again({16: [0.62, 0.68], 4: [0.20, 0.22], 2: [0.67, 0.61]})
    results = run.results
    assert results.champion.row is not None
    assert results.champion.row.rank == 2
    assert [row.rank for row in results.champion.equals] == [16]
    assert not results.champion.is_sure
    assert advice_of(results).how_sure == "a tie"
    assert advice_of(results).next_steps

    far = Run(tmp_path / "far", {2: 0.7, 4: 0.6, 16: 0.7})
    far.train_again({16: [0.66, 0.74], 4: [0.10, 0.12], 2: [0.58, 0.64]})
    assert far.champion.row is not None
    assert far.champion.row.rank == 16
    assert [row.rank for row in far.champion.equals] == [2]
    command = advice_of(far.results).next_steps[0].command
    assert command is not None
    assert far.trials[16] in command
    assert far.trials[2] in command
    assert "--seeds" in command


def test_a_finalist_that_surely_left_its_prompts_is_not_named(tmp_path: Path) -> None:
    """However like the person it is; where all have, nobody is."""
    run = Run(tmp_path / "one", {2: 0.5, 4: 0.6, 16: 0.7})
    run.train_again({16: [0.8, 0.8], 4: [0.6, 0.6], 2: [0.4, 0.4]}, alignments={16: 0.2})
    assert run.champion.row is not None
    assert run.champion.row.rank == 4
    standings = {each.row.rank: each.standing for each in run.results.confirmations.finalists}
    assert standings == {16: "off prompt", 4: "follows", 2: "follows"}
    nobody = Run(tmp_path / "all", {2: 0.5, 4: 0.6, 16: 0.7})
    nobody.train_again({16: [0.8, 0.8], 4: [0.6, 0.6], 2: [0.4, 0.4]}, alignments=dict.fromkeys(RANKS, 0.2))
    assert nobody.champion.row is None
    assert "fall short of the rule" in nobody.champion.reason


def test_a_borderline_one_is_named_and_said(tmp_path: Path) -> None:
    """A point 0.0004 below the line decides nothing."""
    run = Run(tmp_path / "ada", {2: 0.5, 4: 0.6, 16: 0.7})
    run.train_again({16: [0.8, 0.82], 4: [0.6, 0.62], 2: [0.4, 0.42]}, alignments={16: 0.2796})
    assert run.champion.row is not None
    assert run.champion.row.rank == 16
    assert run.champion.standing == "borderline"
    assert not run.champion.is_sure
    why = advice_of(run.results).why
    assert "not sure" in why
    assert "LoRA of rank 4, learning rate 1e-4, 100 steps surely does" in why


def test_trainings_that_fail_are_said(tmp_path: Path) -> None:
    """A setting of which one seed in two diverges is no finding."""
    run = Run(tmp_path / "ada", {2: 0.5, 4: 0.6, 16: 0.7})
    run.train_again({16: [0.8, 0.82], 4: [0.6, 0.62], 2: [0.4, 0.42]})
    (last,) = [
        record
        for record in run.folder.confirm.trials()
        if record.config["rank"] == 16 and record.config["seed"] == 1001
    ]
    run.folder.confirm.write(last.model_copy(update={"checkpoints": (), "status": "failed", "fault": "trial"}))
    assert run.results.confirmations.is_whole
    assert not run.champion.is_finding
    assert any("1 of its 2 trainings" in caveat for caveat in run.champion.caveats)


def test_a_copier_is_no_champion_without_a_word(tmp_path: Path) -> None:
    """In the caveats, first look or confirmed."""
    run = Run(tmp_path / "ada", {2: 0.5, 4: 0.6, 16: 0.7})
    record = run.folder.read(run.trials[16])
    assert record is not None
    check = Examination(copies=CopyCheck(nearest=(), num_copies=2))
    run.folder.write(
        record.model_copy(update={"checkpoints": (record.checkpoints[0].model_copy(update={"examination": check}),)})
    )
    assert any("copies its training photos" in caveat for caveat in run.champion.caveats)
    run.train_again({16: [0.8, 0.82], 4: [0.6, 0.62], 2: [0.4, 0.42]})
    assert any("copies its training photos" in caveat for caveat in run.champion.caveats)
    assert run.champion.is_finding, "it is more like the person on other photos, all the same"
    assert not run.champion.is_sure
    advice = advice_of(run.results)
    assert "copies photos" in advice.how_sure
    assert advice.next_steps[-1].command == f"dreamsweep export {tmp_path.name}/ada DEST --trial {run.trials[4]}"


def test_another_judges_disagreement_is_said(tmp_path: Path) -> None:
    """Where the encoder that had no part in the search prefers another finalist."""
    run = Run(tmp_path / "ada", {2: 0.5, 4: 0.6, 16: 0.7})
    run.train_again({16: [0.8, 0.82], 4: [0.6, 0.62], 2: [0.4, 0.42]})
    for record in run.folder.confirm.trials():
        opinion = SecondOpinion(face_similarity=0.9 if record.config["rank"] == 4 else 0.5, face_encoder="another")
        checkpoint = record.checkpoints[0].model_copy(update={"second_opinion": opinion})
        run.folder.confirm.write(record.model_copy(update={"checkpoints": (checkpoint,)}))
    assert "a second face encoder prefers" in advice_of(run.results).why
    assert run.trials[4] in advice_of(run.results).why


def test_what_was_asked_for_by_name_adds_to_the_search_s_finalists(tmp_path: Path) -> None:
    """More seeds or pictures of one, or somebody whom the search would not have sent; never fewer."""
    run = Run(tmp_path / "ada", {2: 0.5, 4: 0.6, 16: 0.7}, confirm="{finalists: 1, seeds: 3}")
    asked = [
        Finalist(trial=run.trials[16], step=STEP, seeds=2, images_per_prompt=4),
        Finalist(trial=run.trials[2], step=STEP, seeds=2, images_per_prompt=1),
    ]
    write_asked(run.folder, asked)
    assert read_asked(run.folder) == asked
    found = {finalist.trial: (finalist.seeds, finalist.images_per_prompt) for finalist in run.results.finalists}
    assert found == {run.trials[16]: (3, 4), run.trials[2]: (2, 1)}
    write_asked(run.folder, [*asked, Finalist(trial=run.trials[4], step=7, seeds=2, images_per_prompt=1)])
    assert len(run.results.finalists) == 2, "a checkpoint that is not there is passed over"
    run.folder.confirm_file.write_text("[{]")
    with pytest.raises(UserError, match=r"confirm\.json: must be a whole list"):
        read_asked(run.folder)
    assert any("confirm.json" in warning for warning in run.results.warnings), "and the rest is shown"
    assert run.results.rows
    run.folder.votes_file.write_text("no vote\n")
    assert any("votes.jsonl" in warning for warning in run.results.warnings)


def test_trials_that_differ_in_their_seed_alone_are_one_finalist(tmp_path: Path) -> None:
    """Their settings are trained again once, with seeds that neither had."""
    run = Run(tmp_path / "ada", {2: 0.5, 4: 0.6, 16: 0.7})
    other = run.config(16).model_copy(update={"seed": 5})
    text = run.folder.sweep_file.read_text().replace(
        "learning_rate: 1e-4", "learning_rate: 1e-4, seed: {choices: [0, 5]}"
    )
    run.folder.sweep_file.write_text(text)
    write(run.folder, other, scored(trial_id(other), STEP, images(0.69, 0.30, 12, seed=77)))
    finalists = run.results.finalists
    assert [finalist.trial for finalist in finalists] == [run.trials[rank] for rank in (16, 4, 2)]
    trials = {record.trial: record for record in run.folder.trials()}
    seeds = {config.seed for finalist in finalists for config in trainings_of(finalist, trials)}
    assert seeds == {FRESH_TRAINING_SEEDS, FRESH_TRAINING_SEEDS + 1}


def test_an_interval_of_a_run_holds_the_seeds_once_they_are_known(tmp_path: Path) -> None:
    """Before, it knows nothing of another training seed, and says so."""
    run = Run(tmp_path / "ada", {2: 0.5, 4: 0.6, 16: 0.7})
    before = run.results.rows[0].face_similarity_interval
    run.train_again({16: [0.4, 0.8], 4: [0.6, 0.62], 2: [0.4, 0.42]})
    (row,) = [row for row in run.results.rows if row.rank == 16]
    after = row.face_similarity_interval
    assert before is not None
    assert after is not None
    assert "training seeds" not in before.sources
    assert "training seeds" in after.sources
    assert after.high - after.low > before.high - before.low
    assert -1 <= after.low <= after.high <= 1


@pytest.mark.parametrize(("num_trials", "expected"), [(7, None), (8, (2, 2)), (12, (3, 2)), (18, (3, 3)), (40, (3, 3))])
def test_by_default_it_takes_at_most_half_of_the_search_s_trainings(
    tmp_path: Path, num_trials: int, expected: tuple[int, int] | None
) -> None:
    """A sweep of a few trials is not doubled; `finalists: 0` is none whatever the budget."""
    ranks = dict.fromkeys(range(1, 1 + num_trials), 0.5)
    config = load_sweep(Run(tmp_path / "ada", ranks, confirm="null").folder.sweep_file)
    confirm = confirm_of(config)
    assert (confirm and (confirm.finalists, confirm.seeds)) == expected
    assert confirm_of(config.model_copy(update={"confirm": ConfirmConfig(finalists=0)})) is None


def test_the_second_stage_draws_nothing_that_the_search_drew(tmp_path: Path) -> None:
    """Other noise for every picture, no two prompts from one, and prompts that the search has not seen."""
    config: SweepConfig = load_sweep(Run(tmp_path / "ada", {2: 0.5}).folder.sweep_file)
    evaluation = confirm_evaluation(config, ConfirmConfig(), images_per_prompt=3)
    assert evaluation.prompts[:1] == config.evaluation.prompts
    assert len(evaluation.prompts) > len(config.evaluation.prompts)
    assert all("sks woman" in prompt for prompt in evaluation.prompts)
    seeds = [seed for _, seed in evaluation.cells]
    assert len(set(seeds)) == len(seeds) == evaluation.num_images
    assert not set(seeds) & {seed for _, seed in config.evaluation.cells}
    first, rest = evaluation.model_copy(update={"images_per_prompt": 1}), evaluation.beyond(1)
    assert sorted([*first.cells, *rest.cells]) == sorted(evaluation.cells)


def test_a_first_look_that_stands_alone_says_that_its_pictures_are_too_few(tmp_path: Path) -> None:
    """What was scored in full has left its prompts and beats the base model; the champion has four pictures yet."""
    run = Run(tmp_path / "ada", {2: 0.6, 16: 0.7})
    write(run.folder, run.config(16), scored("r16", STEP, images(0.7, 0.1, 12, seed=16)))
    write(run.folder, run.config(2), scored("r2", STEP, images(0.6, 0.30, 4, seed=2), screened=True))
    assert run.champion.row is not None
    assert run.champion.row.screened
    assert not run.champion.is_finding
    assert "too few pictures" in advice_of(run.results).why


def test_rows_of_the_second_stage_are_in_no_table(tmp_path: Path) -> None:
    """They are other pictures: their scores are not the search's."""
    run = Run(tmp_path / "ada", {2: 0.5, 4: 0.6, 16: 0.7})
    before = len(run.results.rows)
    run.train_again({16: [0.50, 0.52], 4: [0.70, 0.72], 2: [0.40, 0.42]})
    assert len(run.results.rows) == before
    assert len(run.results.again) == 7
    assert sum(len(rows_of(record)) for record in run.results.again) == 7
