"""What becomes of one image on its way into a shard. Building whole caches is tested on Ray."""

from __future__ import annotations

import errno
import json
import sys
import types
from pathlib import Path

import pyarrow as pa
import pytest

from orchestrator.data import Format, Issue, Source
from orchestrator.data.build import NoRoom, Unread, _raise, _ShardTask, make_row
from orchestrator.data.cache import Stored
from tests.pictures import noise, write_image
from trainables.contracts import Instance, Sample


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> dict[str, Exception]:
    """What the reader raises for each image; noise for others. The format is "fails:FORMAT"."""
    errors: dict[str, Exception] = {}

    def load(image: str) -> object:
        if image in errors:
            raise errors[image]
        return noise(20, 30)

    module = types.ModuleType("fails")
    module.FORMAT = Format(lambda location: Source("x", (), ()), load)  # type: ignore[attr-defined, arg-type]
    monkeypatch.setitem(sys.modules, "fails", module)
    return errors


STORED = Stored("fails:FORMAT", 10)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file", "x.png"), "No such file"),
        (PermissionError(errno.EACCES, "Permission denied", "x.png"), "Permission denied"),
        (ValueError("the file is empty"), "the file is empty"),
        (KeyError("pixels"), "KeyError: 'pixels'"),
    ],
)
def test_a_broken_image_is_left_out(failing: dict[str, Exception], error: Exception, reason: str) -> None:
    failing["x"] = error
    rows, [issue] = make_row(Sample("id", "train", "x", "", 0), STORED)
    assert not rows
    assert (issue.id, issue.kind) == ("id", "image")
    assert reason in issue.reason


def test_an_image_that_may_be_read_later_ends_the_build(failing: dict[str, Exception], tmp_path: Path) -> None:
    """A hole in a ready cache would stay for good."""
    failing["x"] = OSError(errno.EIO, "Input/output error")
    with pytest.raises(OSError, match="Input/output error"):
        make_row(Sample("id", "train", "x", "", 0), STORED)
    columns = {"id": ["id"], "split": ["train"], "image": ["x"], "stamp": [""], "label": [0], "objects": [None]}
    columns |= {"height": [None], "width": [None], "relative": [False], "file": ["shard-00000.arrow"]}
    [report] = _ShardTask(tmp_path, STORED, None)(pa.table(columns))["report"].to_pylist()
    with pytest.raises(Unread, match="Input/output error"):
        _raise(json.loads(report)["error"])
    assert not list(tmp_path.iterdir())


def test_errors_of_writing_are_told_apart() -> None:
    with pytest.raises(NoRoom, match="no space"):
        _raise({"reading": False, "errno": errno.ENOSPC, "message": "no space"})
    with pytest.raises(OSError, match="read-only") as error:
        _raise({"reading": False, "errno": errno.EROFS, "message": "read-only"})
    assert not isinstance(error.value, NoRoom | Unread)
    _raise(None)


@pytest.mark.usefixtures("failing")
def test_pixels_shrink_and_labels_stay_at_full_scale() -> None:
    sample = Sample("id", "train", "x", "", objects=(Instance(1, (-5, 3, 10, 12)), Instance(0, (4, 4, 4, 9))))
    [row], [issue] = make_row(sample, STORED)
    assert row.pixels is not None
    assert (row.pixels.shape, row.height, row.width) == ((10, 15, 3), 20, 30)
    assert row.objects is not None
    assert row.objects.boxes.tolist() == [[0, 3, 10, 12]]
    assert issue.kind == "label"
    assert "box 1" in issue.reason
    [labels], _ = make_row(sample, Stored("fails:FORMAT", 10, pixels=False))
    assert labels.pixels is None


def test_the_error_of_a_missing_file_is_that_of_the_system(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    rows, issues = make_row(Sample("a", "train", str(tmp_path / "b.png"), "", 0), Stored("imagefolder", 10))
    assert not rows
    assert issues == [Issue("a", f"[Errno 2] No such file or directory: '{tmp_path / 'b.png'}'")]
