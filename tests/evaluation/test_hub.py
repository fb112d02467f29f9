"""Laws of asking the hub. `pytest tests/evaluation/test_hub.py`, a second."""

from __future__ import annotations

from email.message import Message
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
from huggingface_hub import constants

from evaluation import hub


@pytest.mark.parametrize(
    ("answer", "answers", "offline"),
    [
        (URLError("no network"), False, True),
        (TimeoutError(), False, True),
        (HTTPError("hub", 405, "not so", Message(), None), True, False),
    ],
)
def test_a_silent_hub_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, answer: Exception, answers: bool, offline: bool
) -> None:
    """Without an answer the process stays with the hub's cache; any answer at all leaves it online."""
    asked = []

    def urlopen(request: Any, timeout: float) -> None:
        asked.append(request.full_url)
        raise answer

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "urlopen", urlopen)
    hub.hub_answers.cache_clear()
    assert [hub.hub_answers(), hub.hub_answers()] == [answers, answers]
    assert constants.is_offline_mode() == offline
    assert asked == [constants.ENDPOINT]
    hub.hub_answers.cache_clear()


def test_a_process_told_to_stay_offline_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE is obeyed."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "urlopen", None)
    hub.hub_answers.cache_clear()
    assert not hub.hub_answers()
    hub.hub_answers.cache_clear()
