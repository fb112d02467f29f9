"""What the live page has besides a run's own page: all runs, a run in brief, and what stands in its way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from urllib.parse import quote

from evaluation.scores import ImageScore
from sweeps.report.page import Verdict, templates_of
from sweeps.report.pictures import LinkedPictures, Picture
from sweeps.results.leaderboard import Row
from sweeps.results.results import Results
from training.names import name_text

STATUSES = ("finished", "stopped", "running", "failed")
CARDS = {"24": "progress", "41": "best"}
"""Panel of Ray's own dashboard of Grafana -> the card that stands in its place on the Overview page."""


@dataclass(frozen=True)
class Card:
    """A run in brief."""

    name: str
    address: str
    """From the page of all runs."""
    problem: str | None
    written: str
    """When its newest file was written."""
    headline: str = ""
    tone: str = "none"
    num_planned: int = 0
    num_ended: int = 0
    is_interrupted: bool = False
    num_by_status: tuple[tuple[str, int], ...] = ()
    base: Row | None = None
    best: Row | None = None
    """The champion; where there is none, the first by its rule."""
    before: Picture | None = None
    after: Picture | None = None
    """The same prompt and starting noise by the base model and by the best."""
    prompt: str = ""

    @classmethod
    def of(cls, name: str, results: Results | None, problem: str | None, changed: float) -> Card:
        """From what a run folder says.

        Args:
            name: of the run's folder.
            results: the run.
            problem: why there are none.
            changed: when its newest file was written, in seconds since 1970.
        """
        written = datetime.fromtimestamp(changed, UTC).strftime("%Y-%m-%d %H:%M UTC") if changed else ""
        address = f"run/{address_part(name)}/"
        if results is None:
            return cls(name_text(name), address, problem, written)
        pictures = LinkedPictures(results.run_dir)
        verdict = Verdict(results, pictures)
        best = results.champion.row or next(iter(results.best_of_each_trial()), None)
        prompt, before, after = _first_pictures(pictures, results.base, best)
        counts = tuple((status, n) for status in STATUSES if (n := results.num_by_status.get(status)))
        return cls(
            name=name_text(name),
            address=address,
            problem=None,
            written=written,
            headline=verdict.advice.sentence,
            tone=verdict.tone,
            num_planned=results.num_planned,
            num_ended=results.num_ended,
            is_interrupted=results.is_interrupted,
            num_by_status=counts,
            base=results.base,
            best=best,
            before=before,
            after=after,
            prompt=prompt,
        )


def _first_pictures(
    pictures: LinkedPictures, base: Row | None, best: Row | None
) -> tuple[str, Picture | None, Picture | None]:
    """Prompt of the best's first picture that is there, the base model's picture of it, and that picture."""
    before = {image.key: image for image in base.image_scores} if base else {}
    for image in best.image_scores if best else ():
        after = best and pictures.of_row(best, image)
        if after:
            same: ImageScore | None = before.get(image.key)
            return image.prompt or image.key, pictures.of_row(base, same) if base and same else None, after
    return "", None, None


def address_part(name: str) -> str:
    """A folder's or file's name as one part of an address, whatever bytes it has."""
    return quote(name, safe="", errors="surrogateescape")


def index_page(cards: Sequence[Card], assets: str, theme: str | None) -> str:
    """All runs side by side; the page follows them."""
    return _page("index.html.j2", theme, cards=cards, assets=assets, base="")


def index_content(cards: Sequence[Card], theme: str | None) -> str:
    """What stands inside `<main>` of `index_page`."""
    return _page("index_content.html.j2", theme, cards=cards, base="")


def problem_page(name: str, problem: str, assets: str, theme: str | None, index: str | None) -> str:
    """In place of a run's page while it cannot be read; it looks again every few seconds."""
    return _page("problem.html.j2", theme, name=name_text(name), problem=problem, assets=assets, index=index)


def problem_content(problem: str) -> str:
    """In place of a run's content, for a page that follows it."""
    return _page("problem_content.html.j2", None, problem=problem)


def card_page(kind: str, cards: Sequence[Card], assets: str, base: str, theme: str | None) -> str:
    """A small page for a frame on the dashboard's Overview; it looks again every few seconds.

    Args:
        kind: a value of `CARDS`; anything else gets a hint.
        cards: the active runs, the newest first.
        assets: address of scripts and styles.
        base: address of the page of all runs.
        theme: `light`, `dark` or None.
    """
    return _page("card.html.j2", theme, kind=kind, cards=cards, assets=assets, base=base)


def _page(template: str, theme: str | None, **said: object) -> str:
    kept = f"?theme={theme}" if theme else ""
    return templates_of("sweeps.watch").get_template(template).render(theme=theme, kept=kept, **said)


@cache
def style() -> str:
    """The style sheet of these pages; it stands on the report's."""
    return (Path(__file__).parent / "templates" / "watch.css").read_text(encoding="utf-8")
