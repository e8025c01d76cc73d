"""The reader that docs/formats.md shows is the one that is tested."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from orchestrator.data.files import read_bytes
from orchestrator.data.images import open_image
from orchestrator.data.manifest import read_manifest
from orchestrator.data.objects import resolve
from tests.conftest import ROOT
from tests.pictures import write_images


@pytest.fixture
def _nuclei(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of the docs as nuclei.py on the Python path."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "formats.md").read_text(), re.S)
    assert len(code.splitlines()) < 40
    (tmp_path / "nuclei.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nuclei", raising=False)


@pytest.mark.usefixtures("_nuclei")
def test_the_example_reads_a_mask_per_object(tmp_path: Path) -> None:
    root = write_images(tmp_path / "set" / "stage1_train", {"a/images": 1, "a/masks": 3, "b/images": 1}).parent
    manifest = read_manifest(str(root), "nuclei:read")
    assert (manifest.name, manifest.classes, manifest.reason) == ("nuclei", ("nucleus",), "as configured")
    a, b = manifest.samples()
    assert (a.id, b.id) == ("stage1_train/a/images/0.png", "stage1_train/b/images/0.png")
    assert [item.mask for item in a.objects or ()] == [str(root / f"stage1_train/a/masks/{i}.png") for i in range(3)]
    assert (b.objects, b.split) == ((), "train")


@pytest.mark.usefixtures("_nuclei")
def test_the_example_reads_the_real_data_set(test_data: Path) -> None:
    manifest = read_manifest(str(test_data / "dsb2018_nuclei"), "nuclei:read")
    samples = list(manifest.samples())
    assert (len(samples), sum(len(sample.objects or ()) for sample in samples)) == (90, 2478)
    picture = open_image(read_bytes(samples[0].image))
    objects, dropped = resolve(samples[0], (picture.height, picture.width), picture.orientation)
    assert (len(objects.boxes), len(objects.masks or ()), dropped) == (len(samples[0].objects or ()),) * 2 + ([],)
    assert (objects.boxes[:, :2] < objects.boxes[:, 2:]).all()


@pytest.mark.usefixtures("_nuclei")
@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("nuclei:missing", "'nuclei:missing': module 'nuclei' has no 'missing'"),
        ("nuclear:read", "'nuclear:read': there is no module 'nuclear' on the Python path"),
        ("nuclei:__doc__", "format 'nuclei:__doc__' is neither a function that takes a location nor a Format"),
        ("os.path:basename", "format os.path:basename gave a str instead of an orchestrator.data.Source"),
    ],
)
def test_what_is_no_reader_is_refused(tmp_path: Path, format: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        read_manifest(str(tmp_path), format)
