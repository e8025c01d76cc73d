from __future__ import annotations

import subprocess
import sys

import numpy as np
from sklearn.datasets import load_digits

from orchestrator.data.digits import FORMAT


def test_the_digits_are_scikit_learns() -> None:
    bunch = load_digits()
    source = FORMAT.read("digits")
    samples = list(source.samples)
    assert (source.name, source.classes) == ("digits", tuple("0123456789"))
    assert [sample.label for sample in samples] == bunch.target.tolist()
    assert len({sample.id for sample in samples}) == 1797
    for i in (0, 1, 900, 1796):
        image = FORMAT.load(samples[i].image)
        assert isinstance(image, np.ndarray)
        assert image.shape == (8, 8, 3)
        assert image.dtype == np.uint8
        assert np.array_equal(image[:, :, 0], bunch.images[i] * 15)
        assert (image == image[:, :, :1]).all()


def test_reading_the_digits_does_not_import_scikit_learn() -> None:
    code = "import sys; from orchestrator.data.digits import load; load('3'); sys.exit('sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
