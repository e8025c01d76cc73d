"""Files of a data set, on a local disk or in a bucket: one way to list and to read them.

    /data/fruit, ~/fruit, fruit        local; symbolic links are followed
    s3://bucket/fruit, gs://bucket/fruit

Endpoint, region and credentials of a bucket come from the environment (AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID,
..., GOOGLE_APPLICATION_CREDENTIALS), as every other tool takes them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.data import buckets

REMOTE = ("s3://", "gs://")
UNTOLD = ("data", "dataset", "images")
"""Folder names that do not say what a data set is."""
SIDE_BY_SIDE = 32
"""Requests to a bucket at a time: small files cost a round trip each, not bandwidth."""


@dataclass(frozen=True)
class Entry:
    """A file or folder of a listing. `path` is relative to the data set's root, with "/" between its parts."""

    path: str
    is_dir: bool
    stamp: str = ""
    """Of a file: size and modification time."""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """In lower case, with its dot."""
        return os.path.splitext(self.path)[1].lower()


class Files:
    """The files below one location. Paths are relative to it; "../other" and absolute paths lead out of it.

    Every method raises ValueError, which says what to do, where a bucket or the location cannot be read.
    """

    def __init__(self, location: str) -> None:
        self.remote = is_remote(location)
        if self.remote and not location.partition("://")[2].strip("/"):
            raise ValueError(f"{location} names no bucket: write {location.partition('://')[0]}://BUCKET/PATH")
        self.location = location.rstrip("/") if self.remote else str(Path(location).expanduser().absolute())

    @property
    def name(self) -> str:
        """What the data set is called: the last folder whose name says more than that it holds data."""
        parts = self.location.partition("://")[2].split("/") if self.remote else self.location.split("/")
        return next((part for part in reversed(parts) if part and part.lower() not in UNTOLD), self.location)

    @property
    def folder(self) -> Files:
        """Where the location itself is a file: the folder that it lies in."""
        return Files(self.location.rpartition("/")[0] or "/")

    def below(self, path: str) -> Files:
        """A folder as a location of its own."""
        return Files(self.place(path))

    def place(self, path: str) -> str:
        """The absolute path, or the URI, of a path: what `Sample.image` holds and `read_bytes` takes."""
        if is_remote(path):
            return path
        if self.remote:
            scheme, rest = self.location.split("://")
            return f"{scheme}://{_normal(f'{rest}/{path}')}"
        return os.path.normpath(os.path.join(self.location, os.path.expanduser(path)))

    def entry(self, path: str = "") -> Entry | None:
        """The file or folder at a path, or None."""
        place = self.place(path) if path else self.location
        if is_remote(place):
            return _remote_entry(place, path)
        try:
            stat = os.stat(place)
        except OSError:
            return None
        return Entry(path, os.path.isdir(place), f"{stat.st_size}:{stat.st_mtime_ns}")

    def is_dir(self, path: str = "") -> bool:
        entry = self.entry(path)
        return entry is not None and entry.is_dir

    def is_file(self, path: str = "") -> bool:
        entry = self.entry(path)
        return entry is not None and not entry.is_dir

    def entries(self, path: str = "") -> list[Entry]:
        """Files and folders directly in a folder, sorted by name; hidden ones (.name) are left out."""
        place = self.place(path) if path else self.location
        found = _remote_list(place, path) if is_remote(place) else _local_list(place, path)
        return sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)

    def walk(self, path: str = "") -> Iterator[Entry]:
        """All files below a folder in a stable order; links back to a folder that leads to them are not entered."""
        place = self.place(path) if path else self.location
        if is_remote(place):
            found = _remote_list(place, path, recursive=True)
            shown = (e for e in found if not e.is_dir and "/." not in f"/{e.path[len(path) :]}")
            yield from sorted(shown, key=lambda e: e.path)
        else:
            yield from self._walk_local(path, frozenset())

    def read(self, path: str) -> bytes:
        return read_bytes(self.place(path))

    def read_text(self, path: str) -> str:
        """Text in UTF-8, with or without a byte-order mark."""
        try:
            return self.read(path).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.place(path)} is not text in UTF-8 (byte {error.start})") from error

    def _walk_local(self, path: str, above: frozenset[str]) -> Iterator[Entry]:
        real = os.path.realpath(self.place(path) if path else self.location)
        if real in above:
            return
        for entry in self.entries(path):
            if entry.is_dir:
                yield from self._walk_local(entry.path, above | {real})
            else:
                yield entry


def is_remote(place: str) -> bool:
    return place.startswith(REMOTE)


def read_bytes(place: str) -> bytes:
    """The content of a file at an absolute path or URI. Raises OSError; ValueError for a bucket that cannot be read."""
    if is_remote(place):
        return buckets.read(place)
    with open(place, "rb") as file:
        return file.read()


def open_input(place: str) -> Any:
    """A file at an absolute path or URI as a pyarrow NativeFile with random access. Raises as `read_bytes` does."""
    import pyarrow as pa

    return buckets.open_input(place) if is_remote(place) else pa.OSFile(place)


def read_many(places: Iterable[str]) -> Iterator[bytes]:
    """The contents of small files, in order; those of a bucket are read side by side. Raises as `read_bytes` does."""
    waiting = iter(places)
    if (first := next(waiting, None)) is None:
        return
    waiting = chain([first], waiting)
    if not is_remote(first):
        yield from map(read_bytes, waiting)
        return
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        while part := list(islice(waiting, 8 * SIDE_BY_SIDE)):
            yield from pool.map(read_bytes, part)


def _local_list(place: str, path: str) -> Iterator[Entry]:
    prefix = f"{path}/" if path else ""
    try:
        entries = os.scandir(place)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"there is no folder {place}") from error
    except OSError as error:
        raise ValueError(f"{place} cannot be listed: {error.strerror}") from error
    with entries:
        for entry in entries:
            try:
                stat = entry.stat()
            except OSError:  # a link to nowhere; reading it will say so
                yield Entry(prefix + entry.name, False, "unreadable")
                continue
            yield Entry(prefix + entry.name, entry.is_dir(), f"{stat.st_size}:{stat.st_mtime_ns}")


def _remote_entry(place: str, path: str) -> Entry | None:
    info = buckets.info(place)
    return None if info is None else Entry(path, info.is_dir, info.stamp)


def _remote_list(place: str, path: str, recursive: bool = False) -> Iterator[Entry]:
    prefix = f"{path}/" if path else ""
    for info in buckets.listing(place, recursive):
        yield Entry(prefix + info.name, info.is_dir, info.stamp)


def _normal(path: str) -> str:
    """A path of a bucket without "." and ".."."""
    parts: list[str] = []
    for part in PurePosixPath(path).parts:
        if part == ".." and parts:
            parts.pop()
        elif part not in ("..", "."):
            parts.append(part)
    return "/".join(parts)
