"""Whether the weights behind a row are still there: scores outlive them, an export does not."""

from __future__ import annotations

from sweeps.ledger.folder import RunFolder
from sweeps.results.leaderboard import Row
from training.errors import UserError
from training.manifest import DamagedError, verify_weights


def weights_problem(folder: RunFolder, row: Row, *, digests: bool = False) -> str | None:
    """A sentence about a row's weights where they are deleted or damaged, with the way to have them back; else None.

    It names the checkpoint from the run folder on: a report goes to people whom the machine's folders do not concern.

    Args:
        folder: the run's.
        row: of a trained checkpoint.
        digests: read every byte instead of looking at sizes.
    """
    if row.checkpoint is None:
        return None
    try:
        path = folder.inside(row.checkpoint)
    except UserError as error:
        return str(error)
    name = f"the weights of {row.trial} at step {row.step}"
    if not path.exists():
        return (
            f"{name} were deleted, their scores stand; to train them anew, make the empty folder "
            f"{row.checkpoint} in the run folder and give the run command again"
        )
    try:
        verify_weights(path, digests=digests)
    except DamagedError as error:
        return f"{name} are damaged, their scores stand: {row.checkpoint}: {error}; the run command trains them anew"
    except OSError as error:
        return f"{name} cannot be read: {row.checkpoint}: {error.strerror}"
    return None


def is_damaged(folder: RunFolder, row: Row, *, digests: bool = False) -> bool:
    """Is the checkpoint's folder there, but not as it was written? One that was deleted is gone on purpose."""
    if row.checkpoint is None:
        return False
    try:
        verify_weights(folder.inside(row.checkpoint), digests=digests)
    except DamagedError:
        return folder.inside(row.checkpoint).is_dir()
    return False
