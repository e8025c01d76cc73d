"""Locks between processes of a node, freed by the operating system when their holder dies."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

POLL_SECONDS = 0.2


class Lease:
    """A shared hold on a file: as long as one lives, `free` does not give the file away. Ends with its process."""

    def __init__(self, path: Path) -> None:
        """Take hold. Raises OSError where the file can neither be made nor opened."""
        self._file = _acquire(path, fcntl.LOCK_SH)

    def release(self) -> None:
        if self._file:
            self._file.close()


@contextmanager
def exclusive(path: Path, while_waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a lock alone. `while_waiting` is called several times a second until it is free, and may raise."""
    while (file := _acquire(path, fcntl.LOCK_EX | fcntl.LOCK_NB)) is None:
        while_waiting()
        time.sleep(POLL_SECONDS)
    with file:
        yield


@contextmanager
def free(path: Path) -> Iterator[bool]:
    """Whether nobody holds the lock; while True, nobody can take it. The file is removed afterwards."""
    file = _acquire(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if file is None:
        yield False
        return
    with file:
        yield True
        path.unlink(missing_ok=True)


def held(path: Path) -> bool:
    """Whether a process holds a lock, alone or shared; True too where that cannot be told."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _acquire(path: Path, kind: int) -> IO[str] | None:
    """The locked file; None where it is taken and `kind` does not wait."""
    while True:
        file = path.open("a")
        try:
            fcntl.flock(file, kind)
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass
        file.close()  # removed by its last holder between opening and locking: the next one is a new file
