"""Whether model files can be fetched from the Hugging Face hub, asked once per process."""

from __future__ import annotations

from functools import cache
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from huggingface_hub import constants

TIMEOUT_SECONDS = 10


@cache
def hub_answers() -> bool:
    """Ask the hub once; if it does not answer, this process stays with the hub's cache from now on.

    Without that the hub's client asks again for half a minute for every file, of a machine without a network too, and
    also for files that it has.
    """
    if constants.is_offline_mode():
        return False
    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=TIMEOUT_SECONDS):  # noqa: S310 - a constant
            return True
    except HTTPError:  # an answer, if not to this question
        return True
    except OSError:
        constants.HF_HUB_OFFLINE = True
        return False
