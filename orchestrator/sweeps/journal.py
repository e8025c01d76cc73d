"""journal.jsonl: everything that happened in a sweep, one JSON object per line, in its order. What resume replays.

The kinds, and their fields beside "kind" and "time" (wall clock):

    sweep     format_version, id, name, settings,          the first line; `settings` are what `extend` may change,
              fingerprint, earlier                         `earlier` is what was read of other sweeps
    session   (none)                                       a driver begins: the first, `resume`, `extend`
    extended  changes                                      settings of `tune` that have other values from here on
    decided   settings                                     what was measured before the trials
    trial     trial, params, by, folder                    a configuration is tried
    epoch     trial, row, decision (or null)               a trial has finished an epoch, what the scheduler said
    retry     trial, reason                                a trial goes on after it was lost
    revived   trial                                        a stopped trial goes on
    end       trial, status, because                       a trial has ended
    closed    (none)                                       a driver ends: all of it is in the files and in MLflow
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1
JOURNAL = "journal.jsonl"

Event = dict[str, Any]


class Journal:
    """The file, open for appending. Each event is on the disk before the driver goes on."""

    def __init__(self, path: Path) -> None:
        """Raises OSError, BlockingIOError where another driver is at it.

        What a killed driver left of a last line is cut off.
        """
        self._file = path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise
        self._file.truncate(_whole_lines(path))

    def append(self, kind: str, **fields: Any) -> Event:
        """Write an event; returns it as it will be read."""
        line = json.dumps({"kind": kind, "time": time.time(), **fields})
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        if kind != "epoch":  # of an epoch that is lost with the machine, the checkpoint tells again
            os.fsync(self._file.fileno())
        event: Event = json.loads(line)
        return event

    def close(self) -> None:
        self._file.close()


def is_sweep(path: str | Path) -> bool:
    """Whether a folder is that of a sweep."""
    return (Path(path).expanduser() / JOURNAL).is_file()


def read_journal(path: Path) -> list[Event]:
    """The events of a journal. Raises ValueError where it is damaged or newer than this version, OSError."""
    lines = path.read_bytes()[: _whole_lines(path)].splitlines()
    try:
        events = [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not events or not isinstance(events[0], dict) or events[0].get("kind") != "sweep":
        raise ValueError(f"{path} is not the journal of a sweep")
    version = events[0].get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(f"{path}: format_version {version} is newer than this version reads ({FORMAT_VERSION})")
    return events


def _whole_lines(path: Path) -> int:
    """Bytes up to the end of the last whole line; 0 where there is no file."""
    if not path.exists():
        return 0
    return path.read_bytes().rfind(b"\n") + 1
