"""Files of weights, wherever they lie: a local path, s3://, gs:// or https://; no pickle is ever run.

FILE.safetensors, FILE.pt, .pth, .bin     a state dict, or a checkpoint that holds one
RUN, RUN/checkpoints/best                 of our own runs: the moving average of the weights where there is one
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch
from safetensors import safe_open
from torch import Tensor

BUCKETS = ("s3://", "gs://")
OURS = ("ema.safetensors", "model.safetensors")
"""The weights in the folder of one of our checkpoints, the preferred one first."""
RUN_CHECKPOINTS = ("checkpoints/best", "checkpoints/last")
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
WRAPPERS = (*AVERAGES, "state_dict", "model_state_dict", "model_state", "model", "module", "network", "net", "weights")
"""Keys of a checkpoint under which its state dict lies: averaged weights first, as they are the ones to be used."""
SECONDS = 30
"""For which a server may be silent."""


@dataclass(frozen=True)
class WeightFile:
    """What a file holds: float tensors in float32 on the CPU, and its texts beside them (safetensors' metadata)."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)


def is_remote(source: str) -> bool:
    """Whether a source is a URI and not a local path."""
    return "://" in source


def read_weights(source: str | Path) -> dict[str, Tensor]:
    """The state dict in a file of weights, as `read_file` reads it."""
    return read_file(source).tensors


def read_file(source: str | Path) -> WeightFile:
    """Read a file of weights. A file of https:// is kept in torch's cache; those of buckets are read anew.

    Raises ValueError, which begins with "pretrained", where there is no such file or nothing of use in it.
    """
    with local_file(str(source)) as path:
        try:
            is_safe = path.suffix == ".safetensors"
            content, metadata = _read_safetensors(path) if is_safe else (_torch_load(path), {})
        except Exception as error:
            raise ValueError(f"pretrained: {source} is not a readable file of weights: {_cause(error)}") from error
    found = _unwrap(content)
    if found is None:
        held = f"a dict of {', '.join(map(str, list(content)[:4]))}" if isinstance(content, dict) and content else None
        raise ValueError(f"pretrained: {source} holds {held or f'a {type(content).__name__}'}, not a state dict")
    tensors = {_todays_name(str(k)): v for k, v in found.items() if isinstance(v, Tensor)}
    return WeightFile({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, metadata)


@contextmanager
def local_file(source: str) -> Iterator[Path]:
    """The file as a local one, for as long as the block lasts. Raises ValueError."""
    if source.startswith("https://"):
        yield _downloaded(source)
    elif source.startswith(BUCKETS):
        with tempfile.TemporaryDirectory(prefix="weights-") as folder:
            yield _from_bucket(source, Path(folder))
    elif is_remote(source):
        raise ValueError(f"pretrained: {source} cannot be read: name a local path, s3://, gs:// or https://")
    else:
        yield _in_folder(Path(source).expanduser())


def _in_folder(path: Path) -> Path:
    """The file itself; in a folder of one of our runs or checkpoints, its weights."""
    if path.is_file():
        return path
    for folder in (path, *(path / name for name in RUN_CHECKPOINTS)):
        for name in OURS:
            if (folder / name).is_file():
                return folder / name
    if path.is_dir():
        raise ValueError(f"pretrained: the folder {path} holds no checkpoint: name a file of weights in it")
    raise ValueError(f"pretrained: there is no file {path}")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt", device="cpu") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no dict)


def _torch_load(path: Path) -> Any:
    # checkpoints of torchvision's and timm's scripts hold their command line, a plain bag of values
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _unwrap(content: Any, depth: int = 4) -> dict[str, Any] | None:
    """The state dict in a checkpoint: under a known key, else the only dict of tensors in it."""
    if not isinstance(content, dict) or not depth:
        return None
    inner = {key: value for key, value in content.items() if isinstance(value, dict)}
    for key in WRAPPERS:
        if key in inner and (found := _unwrap(inner[key], depth - 1)):
            return found
    if any(isinstance(value, Tensor) for value in content.values()):
        return content
    others = [_unwrap(value, depth - 1) for key, value in inner.items() if "optim" not in str(key).lower()]
    filled = [found for found in others if found]
    return filled[0] if len(filled) == 1 else None


def _todays_name(key: str) -> str:
    """torchvision's files of densenets still have the names of 2017: norm.1 for norm1."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key)


def _cause(error: Exception) -> str:
    text = str(error)
    if "weights_only" in text or "Weights only load failed" in text:
        return (
            "it holds Python objects beside tensors, and those are not loaded, as they could run any code: "
            "save model.state_dict() alone"
        )
    return text.splitlines()[0] if text else type(error).__name__


# ------------------------------------------------------------------------------------------- from elsewhere


def _from_bucket(uri: str, folder: Path) -> Path:
    """A copy of an object of S3 (AWS_ENDPOINT_URL is respected) or Google Cloud Storage."""
    import pyarrow as pa
    import pyarrow.fs

    scheme, _, place = uri.rstrip("/").partition("://")
    try:
        filesystem = _bucket(scheme, place.split("/")[0])
        for candidate in (place, *(f"{place}/{name}" for name in OURS)):
            if filesystem.get_file_info(candidate).type == pyarrow.fs.FileType.File:
                target = folder / candidate.rsplit("/", 1)[-1]
                with filesystem.open_input_stream(candidate) as stream, target.open("wb") as file:
                    shutil.copyfileobj(stream, file, 1 << 20)
                return target
    except (OSError, ValueError, pa.ArrowException) as error:
        keys = "the AWS_ variables" if scheme == "s3" else "GOOGLE_APPLICATION_CREDENTIALS"
        raise ValueError(
            f"pretrained: {uri} cannot be read; check its name, {keys} and the network ({_brief(error)})"
        ) from error
    raise ValueError(f"pretrained: there is no file {uri}")


def _bucket(scheme: str, bucket: str) -> Any:
    import pyarrow.fs

    if scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if not region:  # endpoints of one's own have none
            region = "us-east-1" if endpoint else pyarrow.fs.resolve_s3_region(bucket)
        return pyarrow.fs.S3FileSystem(region=region, endpoint_override=endpoint, request_timeout=SECONDS)
    at = os.environ.get("STORAGE_EMULATOR_HOST", "").partition("://")
    options: dict[str, Any] = {"scheme": at[0], "endpoint_override": at[2], "anonymous": True} if at[1] else {}
    return pyarrow.fs.GcsFileSystem(retry_time_limit=timedelta(seconds=SECONDS), **options)


def cached_path(url: str) -> Path:
    """Where the file of a URL is kept. Names with torch's hash in them are torch's own, others get one of the URL."""
    name = unquote(urlsplit(url).path).rsplit("/", 1)[-1] or "weights"
    if not re.search(r"-[0-9a-f]{8,}\.", name):
        name = f"{hashlib.sha256(url.encode()).hexdigest()[:10]}-{name}"
    return Path(torch.hub.get_dir(), "checkpoints", name)


def _downloaded(url: str) -> Path:
    """The file in torch's cache: downloaded whole or not at all, also where several processes do it at once."""
    target = cached_path(url)
    if target.is_file():
        return target
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            _fetch(url, file)
        os.replace(draft, target)
    except (OSError, http.client.HTTPException) as error:  # urllib's errors are OSErrors
        raise ValueError(
            f"pretrained: {url} cannot be downloaded to {target} ({_brief(error)}); "
            "check the address and the network, or set pretrained to a file that you have"
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return target


def _fetch(url: str, file: Any) -> None:
    digest, received = hashlib.sha256(), 0
    request = urllib.request.Request(url, headers={"User-Agent": "orchestrator"})
    with urllib.request.urlopen(request, timeout=SECONDS) as response:
        expected = response.headers.get("Content-Length")
        while block := response.read(1 << 20):
            digest.update(block)
            received += len(block)
            file.write(block)
    file.flush()
    if expected is not None and received != int(expected):
        raise OSError(f"the connection broke after {received} of {expected} bytes")
    named = re.search(r"-([0-9a-f]{8,})\.", urlsplit(url).path.rsplit("/", 1)[-1])
    if named and not digest.hexdigest().startswith(named[1]):
        raise OSError(f"its SHA-256 begins with {digest.hexdigest()[:8]}, not with {named[1]} as its name says")


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 300 else f"{text[:300]} ..."
