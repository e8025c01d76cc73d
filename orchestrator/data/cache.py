"""The cache: decoded shards in a folder that is addressed by its content, built once, mapped by every process.

    ROOT/KEY/plan.json           what is stored and how it is cut into shards; written first
    ROOT/KEY/shard-00000.arrow   pixels and labels (shards.py)
    ROOT/KEY/shard-00000.json    its size, SHA-256 and what was left out
    ROOT/KEY/index.json          all of these; written last: with it, the cache is ready
    ROOT/KEY.lock, KEY.use       held by the process that builds, and by those that read

KEY hashes the manifest's fingerprint, what is stored of each image, and the format versions. Every file appears in one
rename, so a build that was killed goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.data import Issue
from orchestrator.data.images import DECODE_VERSION, Image
from orchestrator.data.locks import Lease
from orchestrator.data.manifest import Manifest
from orchestrator.data.objects import Frame, Objects
from orchestrator.data.shards import FORMAT_VERSION, Shard
from orchestrator.drafts import replacing
from trainables.augment import Fit
from trainables.order import Keys, Positions

CROP_MARGIN = 1.14
"""The stored side as a multiple of imgsz: what random crops need."""


@dataclass(frozen=True)
class Stored:
    """What a cache holds of each image, and how to get it."""

    format: str
    side: int
    """Length of the side that `fit` names, in pixels; smaller images keep their size."""
    fit: Fit = "short"
    frame: Frame = "auto"
    """Which pixels the labels of images with an EXIF orientation refer to."""
    pixels: bool = True
    """False: labels only; the pixels are decoded when they are needed."""

    def key(self, manifest: Manifest) -> str:
        """The name of the cache's folder."""
        content: tuple[Any, ...] = (manifest.fingerprint, asdict(self), DECODE_VERSION, FORMAT_VERSION)
        if not self.pixels:  # then the images are read where they are
            content += tuple(manifest.table["image"].to_pylist())
        return hashlib.sha256(repr(content).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class ShardFile:
    """A shard as its builder left it."""

    file: str
    rows: int
    bytes: int
    mtime_ns: int
    sha256: str
    issues: list[Issue]

    @classmethod
    def parse(cls, values: dict[str, Any]) -> ShardFile:
        return cls(**{**values, "issues": [Issue(**issue) for issue in values["issues"]]})

    def is_sound(self, folder: Path, thorough: bool = False) -> bool:
        """Whether the file is what was written: by size and time, and by its hash where the time differs."""
        if not self.rows:
            return True  # all its samples were left out
        path = folder / self.file
        try:
            stat = path.stat()
        except FileNotFoundError:
            return False
        if stat.st_size != self.bytes:
            return False
        if stat.st_mtime_ns == self.mtime_ns and not thorough:
            return True
        if hash_file(path) != self.sha256:
            return False
        os.utime(path, ns=(stat.st_atime_ns, self.mtime_ns))  # a sound copy: not to be hashed again
        return True


def shards_of(index: dict[str, Any]) -> list[ShardFile]:
    """What an index.json says of the shards."""
    return [ShardFile.parse(values) for values in index["shards"]]


def finished_shards(folder: Path) -> Iterator[ShardFile]:
    """The shards of a cache that are finished, as their reports say; without its report, a shard is made again."""
    for report in sorted(folder.glob("shard-*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            yield ShardFile.parse(json.loads(report.read_text()))


class DamagedCache(ValueError):
    """A shard of a ready cache is not what was written."""


class Cache:
    """A ready cache, opened: the labels of all its samples, and their pixels by position."""

    def __init__(self, folder: Path, elsewhere: Path | None = None) -> None:
        """Open and check a cache. Shards that `folder` lacks are read from `elsewhere`, a copy that every node sees.

        Raises OSError or ValueError where it is not ready, damaged, or of a newer version.
        """
        index = json.loads((folder / "index.json").read_text())
        if index["format_version"] > FORMAT_VERSION:
            raise ValueError(f"{folder} was made by a newer version (format {index['format_version']})")
        self.folder = folder
        self.stored = Stored(**index["stored"])
        self.build_seconds: float = index["build_seconds"]
        self._lease = Lease(folder.with_suffix(".use"))
        files = shards_of(index)
        self.bytes = sum(file.bytes for file in files)
        self.issues = [Issue(**issue) for issue in index["issues"]]
        self.issues += [issue for file in files for issue in file.issues]
        self._shards = [Shard(_sound(file, folder, elsewhere)) for file in files if file.rows]
        columns = pa.Table.from_batches([s.batch.select(["id", "key", "label", "image"]) for s in self._shards])
        self.ids: pa.ChunkedArray = columns["id"]
        self.images: pa.ChunkedArray = columns["image"]
        self.keys: Keys = columns["key"].to_numpy()
        self.labels: Positions = columns["label"].to_numpy()
        counts = np.array([len(s) for s in self._shards])
        self._shard_of: list[int] = np.repeat(np.arange(len(counts)), counts).tolist()
        self._row_of: list[int] = [row for count in counts for row in range(count)]
        self.has_objects = any(shard.has_objects for shard in self._shards)
        self._blocks = [shard.block for shard in self._shards]
        os.utime(folder / "index.json")  # when it was last used

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def skipped(self) -> int:
        """Images that were left out."""
        return sum(issue.kind == "image" for issue in self.issues)

    def image(self, position: int) -> Image:
        """(height, width, 3) RGB pixels of a sample, as a read-only view of the mapped shard."""
        block, row = self._blocks[self._shard_of[position]], self._row_of[position]
        if block is not None:
            return block[row]  # type: ignore[no-any-return]
        return self._shards[self._shard_of[position]].image(row)

    def objects(self, position: int) -> Objects | None:
        """The instances of a sample, in pixels of its image at full scale; None where the data set has none."""
        return self._shards[self._shard_of[position]].objects(self._row_of[position])

    @property
    def object_counts(self) -> Positions:
        """(n,) how many instances each sample has."""
        return np.concatenate([shard.object_counts for shard in self._shards])

    def full_size(self, position: int) -> tuple[int, int]:
        """(height, width) of a sample's upright image at full scale."""
        batch, row = self._shards[self._shard_of[position]].batch, self._row_of[position]
        return batch["full_height"][row].as_py(), batch["full_width"][row].as_py()

    def positions(self, keys: Keys) -> Positions:
        """Where the samples with these keys are, in their order; those that were left out are passed over."""
        by_key = np.argsort(self.keys)
        at = np.searchsorted(self.keys, keys, sorter=by_key)
        found = by_key[np.minimum(at, len(by_key) - 1)]
        positions: Positions = found[self.keys[found] == keys]
        return positions

    def close(self) -> None:
        """Let go of the folder, which may then be removed. The views of pixels stay valid."""
        self._lease.release()


def stored_side(imgsz: int, multi_scale: float) -> int:
    """The side that training at `imgsz` needs, in pixels: room for crops, or the largest batch of multi-scale."""
    return round(imgsz * max(CROP_MARGIN, 1 + multi_scale))


def open_cache(folder: Path) -> Cache | None:
    """The ready cache of a folder, or None where it must be built (again)."""
    try:
        return Cache(folder)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file in one rename."""
    with replacing(path) as draft:
        draft.write_text(json.dumps(values, indent=1))


def remove_drafts(folder: Path) -> None:
    """Remove what a killed process was writing; for the one that holds the folder's lock."""
    for draft in folder.glob(".*"):
        draft.unlink(missing_ok=True)


def _sound(file: ShardFile, folder: Path, elsewhere: Path | None) -> Path:
    for place in (folder, elsewhere):
        if place and file.is_sound(place):
            return place / file.file
    raise DamagedCache(f"{folder / file.file} is damaged or missing")
