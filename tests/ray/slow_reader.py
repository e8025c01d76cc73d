"""A reader of the user's own that takes its time, so that a build can be disturbed in the middle."""

from __future__ import annotations

import time
from pathlib import Path

from orchestrator.data import Format, imagefolder

SECONDS = 0.02
"""Per image."""


def load(image: str) -> bytes:
    time.sleep(SECONDS)
    return Path(image).read_bytes()


FORMAT = Format(imagefolder.read, load)
