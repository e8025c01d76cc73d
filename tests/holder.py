"""Another process that holds a lock of the cache until it is killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOLD = """
import sys, time
from pathlib import Path
from orchestrator.data.locks import Lease, exclusive
kind, path = sys.argv[1], Path(sys.argv[2])
lock = Lease(path) if kind == "shared" else exclusive(path)
if kind == "alone":
    lock.__enter__()
print("held", flush=True)
time.sleep(120)
"""


@contextmanager
def holder(path: Path, kind: str = "shared") -> Iterator[subprocess.Popen[str]]:
    """A process that holds `path`, "shared" or "alone". SIGKILL ends it, at the latest with the block."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, kind, str(path)], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(10)
