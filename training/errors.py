"""Whose failure it is, said by its type. Ground: it knows nothing else of the project.

    UserError        the user can mend it: a setting, a file, a machine that lacks something. The text names law, value
                     and place; the command line shows it without a traceback and exits with 2.
    DivergedError    the settings themselves cause it, so the same settings would meet it again.
    anything else    a failure of the program or the machine.

Both are `ValueError`s, so that pydantic's validators and callers that know nothing of this project may treat them so.
"""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user can mend; the message says what was asked, what was found, and where."""


class DivergedError(UserError):
    """Training, or a picture of what was trained, is not finite."""
