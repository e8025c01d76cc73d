"""Buckets of S3 and Google Cloud Storage through pyarrow.fs; every failure is one ValueError that says what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

CONNECT_SECONDS, REQUEST_SECONDS, ATTEMPTS = 3, 60, 2
"""Of S3: how long one connection and one request may take, and how often they are tried."""
RETRY_SECONDS = 4
"""Of Google: for how long a request is tried again."""
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}
NO_ACCESS = (
    r"access.denied|permission.denied|unauthenticated|access.key|signature|credentials|access token|status 40[13]"
)
NO_BUCKET = r"no.?such.?bucket|bucket does not exist|status 404"


@dataclass(frozen=True)
class Info:
    name: str
    """Path relative to what was listed."""
    is_dir: bool
    stamp: str
    """Size and modification time."""


def info(uri: str) -> Info | None:
    """The object or folder at a URI, or None."""
    filesystem, inside = _filesystem(uri)
    with _told(uri):
        found = filesystem.get_file_info(inside)
    if found.type.name != "NotFound":
        return _info(found, inside)
    scheme, bucket = uri.split("/")[0], inside.split("/")[0]
    if not _exists(f"{scheme}//{bucket}", _endpoint(scheme[:-1])):
        raise ValueError(f"{uri}: there is no bucket {bucket}, or its region is another one (set AWS_REGION)")
    return None


def listing(uri: str, recursive: bool) -> Iterator[Info]:
    """What lies in a folder, or anywhere below it."""
    import pyarrow.fs

    filesystem, inside = _filesystem(uri)
    with _told(uri):
        try:
            found = filesystem.get_file_info(pyarrow.fs.FileSelector(inside, recursive=recursive))
        except FileNotFoundError as error:
            raise ValueError(f"there is no folder {uri}") from error
    return (_info(item, inside) for item in found)


def read(uri: str) -> bytes:
    with open_input(uri) as file, _told(uri):
        data: bytes = file.read()
        return data


def open_input(uri: str) -> Any:
    """An object as a pyarrow NativeFile with random access."""
    filesystem, inside = _filesystem(uri)
    with _told(uri):
        return filesystem.open_input_file(inside)


def _info(found: Any, inside: str) -> Info:
    return Info(found.path[len(inside) :].lstrip("/"), found.type.name == "Directory", f"{found.size}:{found.mtime_ns}")


@contextmanager
def _told(uri: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise _error(uri, error) from error


def _filesystem(uri: str) -> tuple[Any, str]:
    """The file system of a URI, and the path in it. Raises ValueError where there is no way to it."""
    scheme, _, inside = uri.partition("://")
    bucket = inside.split("/")[0]
    if not bucket:
        raise ValueError(f"{uri} names no bucket: write {scheme}://BUCKET/PATH")
    with _told(uri):
        return _connect(scheme, bucket, _endpoint(scheme)), inside


def _endpoint(scheme: str) -> str | None:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if scheme == "s3" else ("STORAGE_EMULATOR_HOST",)
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


@lru_cache(maxsize=16)
def _exists(bucket: str, endpoint: str | None) -> bool:
    filesystem, inside = _filesystem(bucket)
    with _told(bucket):
        return bool(filesystem.get_file_info(inside).type.name != "NotFound")


@lru_cache(maxsize=16)
def _connect(scheme: str, bucket: str, endpoint: str | None) -> Any:
    import pyarrow.fs

    if scheme == "gs":
        at = endpoint.partition("://") if endpoint else None
        options = {"scheme": at[0], "endpoint_override": at[2], "anonymous": True} if at and at[1] else {}
        return pyarrow.fs.GcsFileSystem(retry_time_limit=timedelta(seconds=RETRY_SECONDS), **options)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region:
        region = "us-east-1" if endpoint else pyarrow.fs.resolve_s3_region(bucket)
    return pyarrow.fs.S3FileSystem(
        region=region,
        endpoint_override=endpoint,
        connect_timeout=CONNECT_SECONDS,
        request_timeout=REQUEST_SECONDS,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
    )


class Unreachable(OSError, ValueError):
    """A bucket does not answer. For a location it is bad input, for an image among many an error that may pass."""


def _error(uri: str, error: Exception) -> ValueError | Unreachable:
    """What is known about a failure, and what to do about it, in one message."""
    text = " ".join(str(error).split())
    cause = text if len(text) < 400 else f"{text[:400]} ..."
    scheme, _, inside = uri.partition("://")
    if re.search(NO_ACCESS, text, re.IGNORECASE):
        return ValueError(f"{uri} may not be read: set {CREDENTIALS[scheme]} ({cause})")
    if re.search(NO_BUCKET, text, re.IGNORECASE):
        return ValueError(f"{uri}: there is no bucket {inside.split('/')[0]} ({cause})")
    at = f" at {endpoint}" if (endpoint := _endpoint(scheme)) else ""
    return Unreachable(f"{uri} cannot be reached{at}: {cause}")
