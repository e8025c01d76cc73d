"""Building a cache with Ray Data: one task per shard writes its file, and no pixel passes through the driver."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from orchestrator.data import Issue, get_format
from orchestrator.data.cache import (
    Cache,
    ShardFile,
    Stored,
    finished_shards,
    hash_file,
    open_cache,
    remove_drafts,
    write_json,
)
from orchestrator.data.images import load_stored
from orchestrator.data.locks import exclusive
from orchestrator.data.manifest import Manifest, sample_of
from orchestrator.data.nodes import Place
from orchestrator.data.objects import Objects, resolve
from orchestrator.data.pipeline import map_tables
from orchestrator.data.shards import FORMAT_VERSION, Arena, Row, write_shard
from orchestrator.drafts import replacing
from orchestrator.errors import describe
from trainables.contracts import Sample
from trainables.order import sample_keys

SHARD_BYTES = 128 * 2**20
MIN_SHARD_ROWS = 64
LONGEST = 4
"""Width by height of the images, on average, for which the memory of a task is laid out."""
TASKS_PER_CPU = 4
"""At least, so that no CPU waits long for the last one, and the progress shows."""
LABELS_PER_SHARD = 50_000
"""Rows of a shard without pixels."""

FULL = (errno.ENOSPC, errno.EDQUOT)

OnProgress = Callable[[int, int], None]
"""(images done, images in all)."""


GONE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Errors of the file system that come again: such an image is broken. Others may pass, and end the build."""


class BrokenData(ValueError):
    """More samples than ``max_bad_fraction`` cannot be read."""


class Unread(OSError):
    """Images could not be read now, but perhaps later: the build was ended, and the next one goes on with it."""


class NoRoom(OSError):
    """The disk is full. What was written has been removed."""


def build_cache(
    folder: Path,
    manifest: Manifest,
    stored: Stored,
    max_bad_fraction: float,
    on_progress: OnProgress,
    copies: Place | None = None,
) -> Cache:
    """Build what a cache lacks on all CPUs of the cluster, or wait for another process that is at it. Needs Ray.

    copies: where the node that builds a shard keeps a copy of it, if `folder` is one that all nodes see.
    Raises BrokenData, Unread, NoRoom, and OSError where the folder cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    total = len(manifest)
    with exclusive(
        folder.with_suffix(".lock"), lambda: on_progress(sum(f.rows for f in finished_shards(folder)), total)
    ):
        if (ready := open_cache(folder)) is not None:
            return ready
        started = time.monotonic()
        (folder / "index.json").unlink(missing_ok=True)
        folder.mkdir(exist_ok=True)
        remove_drafts(folder)
        try:
            rows = _plan(folder, manifest, stored)
            task = _ShardTask(folder, stored, copies)
            files = _build_shards(task, manifest, rows, max_bad_fraction, on_progress)
            index = {
                "format_version": FORMAT_VERSION,
                "name": manifest.name,
                "fingerprint": manifest.fingerprint,
                "classes": manifest.classes,
                "stored": asdict(stored),
                "build_seconds": round(time.monotonic() - started, 3),
                "shards": [asdict(file) for file in files],
                "issues": [asdict(issue) for issue in manifest.issues],
            }
            write_json(folder / "index.json", index)
        except OSError as error:
            if not isinstance(error, NoRoom) and error.errno not in FULL:
                raise
            shutil.rmtree(folder, ignore_errors=True)
            raise NoRoom(str(error)) from error
        return Cache(folder)


def _plan(folder: Path, manifest: Manifest, stored: Stored) -> int:
    """Rows per shard: decided once, so that a build which goes on on other machines cuts the same shards."""
    import ray

    path = folder / "plan.json"
    try:
        rows: int = json.loads(path.read_text())["rows_per_shard"]
    except (OSError, ValueError, KeyError):
        for leftover in folder.iterdir():
            leftover.unlink()
        cpus = int(ray.cluster_resources().get("CPU", 1))
        row_bytes = stored.side**2 * 4  # a guess: 4:3 images at the stored short side
        most = SHARD_BYTES // row_bytes if stored.pixels else LABELS_PER_SHARD
        rows = max(1, min(most, max(MIN_SHARD_ROWS, -(-len(manifest) // (cpus * TASKS_PER_CPU)))))
        plan = {"name": manifest.name, "images": len(manifest), "rows_per_shard": rows, "stored": asdict(stored)}
        write_json(path, plan)
    return rows


def _build_shards(
    task: _ShardTask, manifest: Manifest, rows: int, max_bad_fraction: float, on_progress: OnProgress
) -> list[ShardFile]:
    folder, total = task.folder, len(manifest)
    # by their hashes: after a crash of the machine, or where a ready cache cannot be opened, size and time do not tell
    done: dict[str, ShardFile] = {}
    for file in finished_shards(folder):
        if file.is_sound(folder, thorough=True):
            done[file.file] = file
            on_progress(_count(done.values()), total)
    blocks = [
        manifest.table.slice(start, rows).append_column("file", pa.array([name] * min(rows, total - start)))
        for start in range(0, total, rows)
        if (name := f"shard-{start // rows:05d}.arrow") not in done
    ]
    _check(done.values(), total, max_bad_fraction)
    on_progress(_count(done.values()), total)
    if blocks:
        for row in map_tables(task, blocks).iter_rows():
            report = json.loads(row["report"])
            _raise(report.get("error"))
            file = ShardFile.parse(report)
            done[file.file] = file
            on_progress(_count(done.values()), total)
            _check(done.values(), total, max_bad_fraction)
    return [done[name] for name in sorted(done)]


def _count(files: Any) -> int:
    return sum(file.rows + sum(issue.kind == "image" for issue in file.issues) for file in files)


def _check(files: Any, total: int, max_bad_fraction: float) -> None:
    """Raises BrokenData as soon as it is certain, not at the end of the build."""
    refuse_broken([issue for file in files for issue in file.issues], total, max_bad_fraction)


def refuse_broken(issues: list[Issue], total: int, max_bad_fraction: float) -> None:
    """Raises BrokenData where too many of the images were left out."""
    broken = [issue for issue in issues if issue.kind == "image"]
    if len(broken) > max_bad_fraction * total or len(broken) == total:
        examples = "; ".join(f"{i.id}: {i.reason}" for i in broken[:3])
        raise BrokenData(
            f"{len(broken)} of {total} images cannot be read, more than max_bad_fraction={max_bad_fraction} allows: "
            + examples
        )


def _raise(error: dict[str, Any] | None) -> None:
    """Raise what ended a task: whether it was reading, errno and message."""
    if error:
        kind = Unread if error["reading"] else NoRoom if error["errno"] in FULL else OSError
        raise kind(error["message"])


@dataclass(frozen=True)
class _ShardTask:
    """Runs in a Ray Data task: decode the samples of one block, write their shard, return the metadata."""

    folder: Path
    stored: Stored
    copies: Place | None

    def __call__(self, block: pa.Table) -> pa.Table:
        rows: list[Row] = []
        issues: list[Issue] = []
        arena = Arena(len(block) * self.stored.side**2 * 3 * LONGEST if self.stored.pixels else 0)
        reading = True
        try:
            for values in block.to_pylist():
                made, found = make_row(sample_of(values), self.stored)
                rows += [row if row.pixels is None else replace(row, pixels=arena.move(row.pixels)) for row in made]
                issues += found
            reading = False
            file = _write(self.folder / block["file"][0].as_py(), rows, issues, arena)
        except OSError as error:
            told = {"reading": reading, "errno": error.errno, "message": str(error)}
            return pa.table({"report": [json.dumps({"error": told})]})
        if self.copies:
            self.copies.keep(self.folder, file)
        return pa.table({"report": [json.dumps(asdict(file))]})


def make_row(sample: Sample, stored: Stored) -> tuple[list[Row], list[Issue]]:
    """The row of a sample (none, where its image is broken) and what was left out of it.

    Raises OSError where the image may be read later.
    """
    try:
        content = get_format(stored.format).load(sample.image)
    except OSError as error:
        if not isinstance(error, GONE):
            raise
        return [], [Issue(sample.id, str(error))]
    except ValueError as error:
        return [], [Issue(sample.id, str(error))]
    except Exception as error:  # in a reader of the user's own
        return [], [Issue(sample.id, describe(error))]
    try:
        picture = load_stored(content, stored.side, stored.fit)
    except ValueError as error:
        return [], [Issue(sample.id, str(error))]
    objects: Objects | None = None
    dropped: list[str] = []
    if sample.objects is not None:
        objects, dropped = resolve(sample, picture.raw_size, picture.orientation, stored.frame)
    key = int(sample_keys([sample.id])[0])
    pixels = picture.pixels if stored.pixels else None
    row = Row(sample.id, key, sample.image, sample.label, picture.height, picture.width, pixels, objects)
    return [row], [Issue(sample.id, reason, "label") for reason in dropped]


def _write(path: Path, rows: list[Row], issues: list[Issue], arena: Arena) -> ShardFile:
    """Write a shard and its report, each in one rename. Raises OSError, with nothing half-written left behind."""
    size, mtime, digest = 0, 0, ""
    if rows:
        with replacing(path) as draft:
            write_shard(draft, rows, arena)
            digest = hash_file(draft)
        size, mtime = path.stat().st_size, path.stat().st_mtime_ns
    file = ShardFile(path.name, len(rows), size, mtime, digest, issues)
    write_json(path.with_suffix(".json"), asdict(file))
    return file
