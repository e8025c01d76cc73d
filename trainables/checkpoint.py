"""The checkpoint format: safetensors and JSON with a SHA-256 manifest, written atomically. No pickle.

    FOLDER/model.safetensors       weights and buffers
    FOLDER/ema.safetensors         their moving average, where the run has one
    FOLDER/optimizer.safetensors   the optimizer's tensors, as "parameter name/key"
    FOLDER/progress.json           format version, epoch, samples consumed, early stopping
    FOLDER/manifest.json           size and SHA-256 of each file above

Tensors are contiguous, and tied ones are saved once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainables.contracts import State

FORMAT_VERSION = 2
"""Version 1 had no moving average, and a progress without phases."""
LAST, BEST = "last", "best"

log = logging.getLogger(__name__)


class DamagedCheckpoint(ValueError):
    """A checkpoint that is incomplete, altered or of a newer format."""


def capture(state: State) -> State:
    """A copy on the CPU that later training steps do not touch: contiguous, tied tensors once."""
    progress = json.loads(json.dumps(state.progress))  # lists that later steps add to are copied too
    return State(
        _unique(state.model), _unique(state.optimizer), progress, state.best, _unique(state.ema), dict(state.metadata)
    )


def save(folder: Path, state: State) -> None:
    """Write a captured state and put it in place of `folder` in one rename. Raises OSError."""
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        metadata = (state.metadata,) if state.metadata else ()
        save_file(state.model, draft / "model.safetensors", *metadata)
        save_file(state.optimizer, draft / "optimizer.safetensors")
        if state.ema:
            save_file(state.ema, draft / "ema.safetensors", *metadata)
        progress = {"format_version": FORMAT_VERSION, **state.progress}
        (draft / "progress.json").write_text(json.dumps(progress, indent=1))
        manifest = {path.name: _digest(path) for path in sorted(draft.iterdir())}
        (draft / "manifest.json").write_text(json.dumps(manifest, indent=1))
        for path in draft.iterdir():
            _sync(path)
        _replace(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def load(folder: Path) -> State:
    """Read and verify a checkpoint; tensors on the CPU. Raises DamagedCheckpoint."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        for name, expected in manifest.items():
            if _digest(folder / name) != expected:
                raise DamagedCheckpoint(f"{folder / name} differs from its manifest")
        progress: dict[str, Any] = json.loads((folder / "progress.json").read_text())
        version = progress.pop("format_version")
        if version > FORMAT_VERSION:
            raise DamagedCheckpoint(f"{folder} has format {version}; this version reads up to {FORMAT_VERSION}")
        model = load_file(folder / "model.safetensors")
        ema = load_file(folder / "ema.safetensors") if "ema.safetensors" in manifest else {}
        return State(model, load_file(folder / "optimizer.safetensors"), progress, ema=ema)
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{folder} is not a complete checkpoint: {error}") from error


def find(folder: Path) -> Path | None:
    """The checkpoint to continue from among those of a run's `checkpoints` folder: last, its predecessor, best."""
    for name in (LAST, f".{LAST}.previous", BEST, f".{BEST}.previous"):
        candidate = folder / name
        if not candidate.exists():
            continue
        try:
            load(candidate)
        except DamagedCheckpoint as error:
            log.warning("left out a damaged checkpoint: %s", error)
        else:
            return candidate
    return None


class Writer:
    """Writes `last` (and `best`) in a background thread; `put` blocks for the copy of the state only.

    When a write takes longer than an epoch, `put` waits for it first: never two copies in flight.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def put(self, state: State) -> None:
        """Capture the state and write it in the background. A failed write is logged; the previous one stays."""
        self._settle()
        self._pending = self._pool.submit(self._write, capture(state))

    def close(self) -> None:
        """Wait until everything is on the disk. Raises OSError where the last write failed."""
        try:
            if self._pending:
                self._pending.result()
        finally:
            self._pending = None
            self._pool.shutdown()

    def _settle(self) -> None:
        if self._pending and (error := self._pending.exception()):
            log.warning("a checkpoint could not be written, the one before it stays: %s", error)

    def _write(self, state: State) -> None:
        save(self.folder / LAST, state)
        if state.best:
            draft = self.folder / f".{BEST}.{os.getpid()}.tmp"
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(self.folder / LAST, draft, copy_function=_link)
            _replace(draft, self.folder / BEST)


def load_model(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put saved weights and buffers back; tied ones are filled through their tie. Raises DamagedCheckpoint."""
    expected = {name: tensor.shape for name, tensor in _unique(model.state_dict()).items()}
    saved = {name: tensor.shape for name, tensor in tensors.items()}
    if saved != expected:
        names = sorted(name for name in {**saved, **expected} if saved.get(name) != expected.get(name))
        raise DamagedCheckpoint(f"the checkpoint belongs to another model: {', '.join(names[:4])} differ")
    model.load_state_dict(tensors, strict=False)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state by parameter name, as live tensors: {"name/key": tensor}."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if value is not None
    }


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put saved tensors back, on each parameter's device and in its memory format."""
    parameters = dict(model.named_parameters())
    for path, tensor in tensors.items():
        name, _, key = path.rpartition("/")
        parameter = parameters[name]
        moment = tensor.shape == parameter.shape and tensor.ndim > 0
        optimizer.state[parameter][key] = torch.empty_like(parameter).copy_(tensor) if moment else tensor


def _unique(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU copies. A tied tensor is saved under its first name; loading fills the others through the tie."""
    seen: set[tuple[int, torch.Size]] = set()
    copies: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        copies[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return copies


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _link(source: str, target: str) -> None:
    """A hard link costs nothing; a file system without links gets a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _replace(draft: Path, folder: Path) -> None:
    """Swap a finished folder in. Between the two renames the old one is `.NAME.previous`, where `find` looks too."""
    previous = folder.with_name(f".{folder.name}.previous")
    if folder.exists():  # else a kill between the renames left the previous one as the only one
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
    draft.rename(folder)
    shutil.rmtree(previous, ignore_errors=True)
