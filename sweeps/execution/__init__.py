"""Running a sweep on Ray: the driver, what precedes the trials, the trial itself, and what is shown meanwhile."""

import os

# Read by Ray when it is imported, so they stand before every module of this room. Ray's own files, bars and tables are
# not ours, and its state snapshots are never read back.
for _name, _value in {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}.items():
    os.environ.setdefault(_name, _value)
