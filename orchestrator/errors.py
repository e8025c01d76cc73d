"""What can go wrong with a run, as its user is told. What is wrong with a config is a ConfigError (config.py)."""

from __future__ import annotations

import traceback


class RunError(RuntimeError):
    """The run failed: the message says why and where to read more. Exit code 1."""


class WorkerError(RuntimeError):
    """What ended the loop in a worker, as text: its traceback, and some errors themselves, do not reach the driver."""


def describe(error: BaseException) -> str:
    """An error in one line, with the last place in its traceback that is not in an installed package."""
    if isinstance(error, WorkerError):
        return str(error)  # described where it happened
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
