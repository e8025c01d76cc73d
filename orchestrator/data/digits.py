"""The bundled data set: scikit-learn's 1,797 handwritten digits, 8 x 8 pixels (UCI Optical Recognition, test part)."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.data import Format, Source
from orchestrator.data.images import Image
from trainables.contracts import Sample


def read(location: str) -> Source:
    """The digits as samples "0000" to "1796". `location` is "digits"."""
    stamp = f"scikit-learn {version('scikit-learn')}"
    labels = _table()[:, 64]
    samples = (Sample(f"{i:04d}", "train", str(i), stamp, int(label)) for i, label in enumerate(labels))
    return Source("digits", tuple(str(d) for d in range(10)), samples)


def load(image: str) -> Image:
    """The pixels of one digit: grey values 0..16 spread over 0..240."""
    grey = (_table()[int(image), :64].reshape(8, 8) * 15).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


@cache
def _table() -> np.ndarray[Any, np.dtype[np.float64]]:
    """(1797, 65): 64 grey values and the class. Read beside scikit-learn, whose import would cost a second."""
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    return np.loadtxt(Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")


FORMAT = Format(read, load)
