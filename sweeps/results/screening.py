"""Scoring in two tiers: which checkpoints could still win, and are to be scored by all of their pictures.

A first look scores every checkpoint by the first pictures of each prompt. They are part of a full score, drawn with the
same noise and sampler, so nothing is drawn twice, and any run that was scored in full tells what a first look would
have chosen (`benchmarks/screening.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from evaluation.config import EvaluationConfig
from evaluation.scores import mean_face_similarity, mean_prompt_alignment, num_with_face
from sweeps.results.leaderboard import Row, best_first
from sweeps.results.results import Results
from sweeps.results.rule import ChampionRule


def due_full_scores(results: Results, evaluation: EvaluationConfig) -> list[Row]:
    """The checkpoints that are to be scored in full next, best first by their first look; none when the sweep is done.

    They are the best `keep` of all. Where none of them follows its prompts by a full score, it is as many more, until
    one does or there are no others. Without screening it is whatever an earlier state of the sweep file left screened.

    Args:
        results: of the run.
        evaluation: as the sweep file has it now.
    """
    failed = {record.trial for record in results.trials if record.status == "failed"}
    rows = [row for row in results.present_rows if not row.is_base and not (row.screened and row.trial in failed)]
    if evaluation.screening is None:
        return [row for row in rows if row.screened]
    return [row for row in kept_by_first_look(rows, evaluation, results.rule) if row.screened]


def kept_by_first_look(rows: Sequence[Row], evaluation: EvaluationConfig, rule: ChampionRule) -> list[Row]:
    """The checkpoints that are scored in full, as far as full scores are known, best first by their first pictures.

    Args:
        rows: all checkpoints, however many pictures each has by now.
        evaluation: with screening.
        rule: by which they are ranked.
    """
    assert evaluation.screening is not None, "or all are scored in full"
    whole = {row.key: row for row in rows}
    ranked = [whole[row.key] for row in best_first((_at_first_look(row, evaluation) for row in rows), rule)]
    num_kept = math.ceil(evaluation.screening.keep * len(rows))
    for end in range(num_kept, len(rows), max(1, num_kept)):
        kept = ranked[:end]
        if any(row.screened or rule.qualifies(row) for row in kept):
            return kept
    return ranked


def _at_first_look(row: Row, evaluation: EvaluationConfig) -> Row:
    beyond = evaluation.seed + evaluation.first_look.images_per_prompt
    images = tuple(image for image in row.image_scores if image.seed is None or image.seed < beyond)
    prompt_alignment = mean_prompt_alignment(images)
    assert prompt_alignment is not None, "a sweep's pictures are scored by CLIP"
    scores = {
        "face_similarity": mean_face_similarity(images, row.no_face_similarity),
        "prompt_alignment": prompt_alignment,
        "num_images": len(images),
        "num_faces": num_with_face(images),
        "image_scores": images,
        "screened": True,
    }
    return row.model_copy(update=scores)
