"""Files that appear whole: written under another name beside their place, and moved there in one rename."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The draft of a file, which takes its place at the end; after an error nothing of it is left."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file in one rename: a reader sees the old or the new text. Raises OSError."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="")
