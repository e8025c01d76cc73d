"""The cache: decoded shards in a folder that is addressed by its content, built once by Ray Data, mapped by all.

    CACHE_DIR/KEY/index.json, shard-00000.arrow, ...
    CACHE_DIR/KEY.lock          held by the process that builds

KEY hashes the manifest's fingerprint, the stored size and the format versions. The folder is built under another name
and published in one rename, so that a reader never sees half a cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.data import get_format
from orchestrator.data.images import DECODE_VERSION, shrink
from orchestrator.data.manifest import Manifest
from orchestrator.data.shards import FORMAT_VERSION, Row, Shard, write_shard

SHARD_BYTES = 128 * 2**20
MIN_SHARD_ROWS = 64
CROP_MARGIN = 1.14
"""The stored short side as a multiple of imgsz: what random crops need."""

OnProgress = Callable[[int, int], None]
"""(images done, images in all)."""


@dataclass(frozen=True)
class Issue:
    """A sample that was left out, and why."""

    id: str
    reason: str


class BrokenData(ValueError):
    """More samples than ``max_bad_fraction`` cannot be read."""


class Cache:
    """A ready cache, opened: the columns of all its samples, and their pixels by position."""

    def __init__(self, folder: Path) -> None:
        """Open and check a cache folder. Raises OSError or ValueError where it is incomplete."""
        index = json.loads((folder / "index.json").read_text())
        if index["format_version"] > FORMAT_VERSION:
            raise ValueError(f"{folder} was made by a newer version (format {index['format_version']})")
        self.folder = folder
        self.bytes: int = sum(s["bytes"] for s in index["shards"])
        self.build_seconds: float = index["build_seconds"]
        self.issues = [Issue(**issue) for issue in index["issues"]]
        self._shards: list[Shard] = []
        for shard in index["shards"]:
            path = folder / shard["file"]
            if path.stat().st_size != shard["bytes"]:
                raise ValueError(f"{path} has {path.stat().st_size} bytes instead of {shard['bytes']}")
            self._shards.append(Shard(path))
        columns = pa.Table.from_batches([s.batch.select(["id", "key", "split", "label"]) for s in self._shards])
        self.ids: pa.ChunkedArray = columns["id"]
        self.keys = columns["key"].to_numpy()
        self.splits: list[str] = columns["split"].to_pylist()
        self.labels = columns["label"].to_numpy()
        counts = np.array([len(s) for s in self._shards])
        self._shard_of = np.repeat(np.arange(len(counts)), counts)
        self._row_of = np.concatenate([np.arange(n) for n in counts]) if len(counts) else counts

    def __len__(self) -> int:
        return len(self._row_of)

    def image(self, position: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """(height, width, 3) RGB pixels of a sample, as a read-only view of the mapped shard."""
        return self._shards[int(self._shard_of[position])].image(int(self._row_of[position]))


def stored_size(imgsz: int) -> int:
    """The short side that training crops of `imgsz` need, in pixels."""
    return round(imgsz * CROP_MARGIN)


def cache_folder(cache_dir: Path, manifest: Manifest, imgsz: int) -> Path:
    """Where the cache of a data set at this size lives."""
    content = (manifest.fingerprint, stored_size(imgsz), DECODE_VERSION, FORMAT_VERSION)
    return cache_dir / hashlib.sha256(repr(content).encode()).hexdigest()[:24]


def open_cache(folder: Path) -> Cache | None:
    """The ready cache of a folder, or None where it must be built (again)."""
    try:
        return Cache(folder)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def build_cache(
    folder: Path, manifest: Manifest, imgsz: int, max_bad_fraction: float, on_progress: OnProgress
) -> Cache:
    """Build the cache with Ray Data on all CPUs of the cluster, or wait for another process that is at it.

    Needs a connected Ray. Raises BrokenData, and OSError where the folder cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_suffix(".lock")):
        if (ready := open_cache(folder)) is not None:
            return ready
        draft = folder.with_suffix(".building")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        try:
            started = time.monotonic()
            shards, issues = _build_shards(draft, manifest, imgsz, on_progress)
            _refuse_broken(issues, len(manifest.table), max_bad_fraction)
            index = {
                "format_version": FORMAT_VERSION,
                "name": manifest.name,
                "fingerprint": manifest.fingerprint,
                "classes": manifest.classes,
                "stored_size": stored_size(imgsz),
                "build_seconds": round(time.monotonic() - started, 3),
                "shards": shards,
                "issues": [asdict(issue) for issue in issues],
            }
            (draft / "index.json").write_text(json.dumps(index, indent=1))
            shutil.rmtree(folder, ignore_errors=True)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return Cache(folder)


def _build_shards(
    draft: Path, manifest: Manifest, imgsz: int, on_progress: OnProgress
) -> tuple[list[dict[str, Any]], list[Issue]]:
    """One Ray Data task per shard writes its file and returns what it did; no pixel passes through the driver."""
    import ray
    import ray.data

    total = len(manifest.table)
    cpus = int(ray.cluster_resources().get("CPU", 1))
    row_bytes = stored_size(imgsz) ** 2 * 4  # a guess: 4:3 images at the stored short side
    rows = max(MIN_SHARD_ROWS, min(-(-total // cpus), SHARD_BYTES // row_bytes))
    blocks = [
        manifest.table.slice(start, rows).append_column(
            "file", pa.array([f"shard-{number:05d}.arrow"] * min(rows, total - start))
        )
        for number, start in enumerate(range(0, total, rows))
    ]
    logging.getLogger("ray.data").setLevel(logging.getLogger("ray").getEffectiveLevel())
    ray.data.DataContext.get_current().enable_progress_bars = False
    task = _ShardTask(str(draft), manifest.format, stored_size(imgsz))
    results = ray.data.from_arrow(blocks).map_batches(task, batch_size=None, batch_format="pyarrow")
    shards: list[dict[str, Any]] = []
    issues: list[Issue] = []
    done = 0
    on_progress(done, total)
    for row in results.iter_rows():
        report = json.loads(row["report"])
        if report["rows"]:
            shards.append({key: report[key] for key in ("file", "rows", "bytes", "sha256")})
        issues += [Issue(**issue) for issue in report["issues"]]
        done += report["rows"] + len(report["issues"])
        on_progress(done, total)
    return sorted(shards, key=lambda s: s["file"]), sorted(issues, key=lambda i: i.id)


@dataclass(frozen=True)
class _ShardTask:
    """Runs in a Ray Data task: decode the samples of one block, write their shard, return the metadata."""

    folder: str
    format: str
    short_side: int

    def __call__(self, block: pa.Table) -> pa.Table:
        load = get_format(self.format).load
        rows: list[Row] = []
        issues: list[Issue] = []
        for sample in block.to_pylist():
            try:
                pixels = shrink(load(sample["image"]), self.short_side)
            except (OSError, ValueError) as error:
                issues.append(Issue(sample["id"], str(error)))
            else:
                rows.append(Row(sample["id"], sample["key"], sample["split"], sample["label"], pixels))
        path = Path(self.folder) / block["file"][0].as_py()
        report: dict[str, Any] = {
            "file": path.name,
            "rows": len(rows),
            "issues": [asdict(i) for i in issues],
        }
        if rows:
            write_shard(path, rows)
            with path.open("rb") as file:
                report["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
            report["bytes"] = path.stat().st_size
        return pa.table({"report": [json.dumps(report)]})


def _refuse_broken(issues: list[Issue], total: int, max_bad_fraction: float) -> None:
    if len(issues) > max_bad_fraction * total or len(issues) == total:
        examples = "; ".join(f"{i.id}: {i.reason}" for i in issues[:3])
        raise BrokenData(
            f"{len(issues)} of {total} images cannot be read, more than max_bad_fraction={max_bad_fraction} allows: "
            + examples
        )


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """An exclusive lock between processes; freed by the operating system when its holder dies."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
