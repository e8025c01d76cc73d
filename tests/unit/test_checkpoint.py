from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.tiny import conv, linear
from trainables import checkpoint
from trainables.checkpoint import DamagedCheckpoint, Writer, capture, find, load, load_model, load_optimizer, save
from trainables.contracts import State
from trainables.optim import OPTIMIZERS, Choice, build_optimizer

FILES = ("manifest.json", "model.safetensors", "optimizer.safetensors", "progress.json")


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here cuts the power, so none needs to wait for the disk."""
    monkeypatch.setattr(checkpoint, "_sync", lambda path: None)


def state(number: int, best: bool = False) -> State:
    """A state that can be told from others by its number."""
    moment = {"weight/exp_avg": torch.full((2, 3), -float(number))}
    return State({"weight": torch.full((2, 3), float(number))}, moment, {"epoch": number}, best)


def number_of(folder: Path | None) -> int:
    """The number of the state in a folder, whose parts must belong together."""
    assert folder is not None
    loaded = load(folder)
    number = int(loaded.progress["epoch"])
    assert torch.equal(loaded.model["weight"], state(number).model["weight"])
    assert torch.equal(loaded.optimizer["weight/exp_avg"], state(number).optimizer["weight/exp_avg"])
    return number


def trained(model: nn.Module, optimizer: str, steps: int = 3) -> torch.optim.Optimizer:
    """Take a few real steps, so that the optimizer has a state."""
    built = build_optimizer(Choice(optimizer, 1e-2, 0.9, "config"), model, 1e-2)
    for _ in range(steps):
        built.zero_grad()
        inputs = torch.rand(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
        model(inputs).square().mean().backward()
        built.step()
    return built


# ---------------------------------------------------------------------------------------- to and from disk


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    save(tmp_path / "last", state(3))
    assert number_of(tmp_path / "last") == 3
    assert sorted(path.name for path in (tmp_path / "last").iterdir()) == sorted(FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["last"], "nothing else is left behind"
    assert json.loads((tmp_path / "last" / "progress.json").read_text()) == {"format_version": 2, "epoch": 3}


def test_a_new_checkpoint_takes_the_place_of_the_old(tmp_path: Path) -> None:
    for number in (1, 2):
        save(tmp_path / "last", state(number))
    assert number_of(tmp_path / "last") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_the_stored_example_of_format_version_1_is_read() -> None:
    """Written by the first version; see tests/stored/README.md."""
    loaded = load(Path(__file__).parents[1] / "stored" / "checkpoint-v1")
    assert loaded.progress == {"epoch": 2, "samples": 6, "best": 0.75}
    assert loaded.model["weight"].tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert loaded.optimizer["weight/momentum_buffer"].tolist() == [[1.0, 1.0], [1.0, 1.0]]


def killed_during(call: int, action: Callable[[], None]) -> bool:
    """Run `action` in a fork that dies just before its `call`-th change on the disk. False: it got to the end."""
    child = os.fork()
    if child == 0:
        calls = 0

        def dying(original: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == call:
                    os._exit(9)
                return original(*args, **kwargs)

            return wrapped

        for owner, name in [
            (os, "rename"),
            (Path, "rename"),
            (shutil, "rmtree"),
            (os, "link"),
            (Path, "mkdir"),
            (checkpoint, "save_file"),
        ]:
            setattr(owner, name, dying(getattr(owner, name)))
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def written(folder: Path, number: int, best: bool) -> Callable[[], None]:
    return lambda: Writer(folder)._write(state(number, best))


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    outcomes = []
    for call in range(1, 100):
        folder = tmp_path / str(call)
        written(folder, 1, best=False)()
        killed = killed_during(call, written(folder, 2, best=False))
        outcomes.append(number_of(find(folder)))
        for second in range(call - 2, call + 1):
            copy = shutil.copytree(folder, tmp_path / f"{call}, {second}")
            killed_during(second, written(copy, 3, best=False))
            assert number_of(find(copy)) in {outcomes[-1], 3}, "a second kill about there loses nothing either"
        if not killed:
            break
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {1, 2}


def test_a_kill_at_any_moment_leaves_a_whole_best_checkpoint(tmp_path: Path) -> None:
    outcomes = []
    for call in range(1, 100):
        folder = tmp_path / str(call)
        written(folder, 1, best=True)()
        killed = killed_during(call, written(folder, 2, best=True))
        for last in (folder / "last", folder / ".last.previous"):
            shutil.rmtree(last, ignore_errors=True)
        outcomes.append(number_of(find(folder)))
        if not killed:
            break
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {1, 2}


def test_a_failed_write_leaves_the_previous_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "last", state(1))

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="no space left"):
        save(tmp_path / "last", state(2))
    assert number_of(tmp_path / "last") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


# ------------------------------------------------------------------------------------------------- damage


def flip_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position // 8 % len(content)] ^= 1 << position % 8
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("damage", [remove, empty, halve, lengthen])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_detected_told_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, damage: Callable[[Path], None]
) -> None:
    save(tmp_path / "last", state(2))
    save(tmp_path / "best", state(1))
    damage(tmp_path / "last" / name)
    with pytest.raises(DamagedCheckpoint, match="last"):
        load(tmp_path / "last")
    with caplog.at_level(logging.WARNING):
        assert find(tmp_path) == tmp_path / "best"
    assert "left out a damaged checkpoint" in caplog.text
    assert str(tmp_path / "last") in caplog.text


@pytest.mark.parametrize("name", FILES)
def test_no_flipped_bit_goes_unnoticed(tmp_path: Path, name: str) -> None:
    save(tmp_path / "last", state(2))
    path = tmp_path / "last" / name
    for position in range(0, 8 * path.stat().st_size, 13):
        flip_bit(path, position)
        with pytest.raises(DamagedCheckpoint):
            load(tmp_path / "last")
        flip_bit(path, position)
    assert number_of(tmp_path / "last") == 2


def test_nothing_usable_is_nothing_found(tmp_path: Path) -> None:
    assert find(tmp_path / "absent") is None
    save(tmp_path / "last", state(1))
    remove(tmp_path / "last" / "progress.json")
    assert find(tmp_path) is None


def rewritten(folder: Path, name: str, content: bytes) -> Path:
    """A checkpoint with another content of one file, and a manifest to match."""
    save(folder, state(1))
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    folder = rewritten(tmp_path / "last", "progress.json", b'{"format_version": 3, "epoch": 1}')
    with pytest.raises(DamagedCheckpoint, match="format 3; this version reads up to 2"):
        load(folder)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (os.environ["BOMB"],))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "progress.json"])
def test_a_pickle_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    for content in (pickle.dumps(Bomb()), _torch_bytes(tmp_path, Bomb())):
        with pytest.raises(DamagedCheckpoint):
            load(rewritten(tmp_path / "last", name, content))
    assert not (tmp_path / "exploded").exists()


def _torch_bytes(folder: Path, content: Any) -> bytes:
    torch.save(content, folder / "torch.pt")
    return (folder / "torch.pt").read_bytes()


# ------------------------------------------------------------------------------------------------ tensors


class Tied(nn.Module):
    """Two names for one weight, as language heads have it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight


def test_tied_tensors_are_saved_once_and_come_back_tied(tmp_path: Path) -> None:
    source, target = Tied(), Tied()
    save(tmp_path / "last", capture(State(source.state_dict(), {}, {})))
    assert sorted(load_file(tmp_path / "last" / "model.safetensors")) == ["first.bias", "first.weight", "second.bias"]
    load_model(target, load(tmp_path / "last").model)
    assert target.second.weight is target.first.weight
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_restored_model_trains_on_to_the_bit(tmp_path: Path, optimizer: str) -> None:
    torch.manual_seed(0)
    source = conv(3).to(memory_format=torch.channels_last)
    held = trained(source, optimizer)
    optimizer_state = checkpoint.optimizer_tensors(held, source)
    save(tmp_path / "last", capture(State(source.state_dict(), optimizer_state, {})))

    target = conv(3).to(memory_format=torch.channels_last)
    restored = build_optimizer(Choice(optimizer, 1e-2, 0.9, "config"), target, 1e-2)
    loaded = load(tmp_path / "last")
    load_model(target, loaded.model)
    load_optimizer(restored, target, loaded.optimizer)
    weight = target.get_parameter("0.weight")
    moments = restored.state[weight]
    assert weight.is_contiguous(memory_format=torch.channels_last)
    shaped = [value for value in moments.values() if value.shape == weight.shape]
    assert shaped
    assert all(value.stride() == weight.stride() for value in shaped)
    for p, q in zip(source.parameters(), target.parameters(), strict=True):
        q.grad = torch.sin(p.detach()).clone()
        p.grad = q.grad.clone()
    for _ in range(3):
        held.step()
        restored.step()
    assert all(torch.equal(p, q) for p, q in zip(source.parameters(), target.parameters(), strict=True))


def test_another_model_is_refused_by_name_and_by_shape() -> None:
    with pytest.raises(DamagedCheckpoint, match=r"belongs to another model: 0\.bias"):
        load_model(linear(3), conv(3).state_dict())
    with pytest.raises(DamagedCheckpoint, match=r"belongs to another model: 1\.bias, 1\.weight"):
        load_model(linear(3), linear(4).state_dict())


def test_a_captured_state_does_not_change_with_training() -> None:
    model = conv(2)
    optimizer = trained(model, "SGD")
    live = State(model.state_dict(), checkpoint.optimizer_tensors(optimizer, model), {"epoch": 1})
    copy, twin = capture(live), capture(live)
    for tensor in (*live.model.values(), *live.optimizer.values()):
        tensor.zero_()
    live.progress["epoch"] = 2
    assert copy.progress == {"epoch": 1}
    for name, tensor in {**copy.model, **copy.optimizer}.items():
        assert torch.equal(tensor, {**twin.model, **twin.optimizer}[name])
        assert tensor.abs().sum() > 0
        assert tensor.is_contiguous()


# ------------------------------------------------------------------------------------------------- writer


def test_the_writer_keeps_last_and_best(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for number, best in [(1, False), (2, True), (3, False)]:
        writer.put(state(number, best))
    writer.close()
    assert (number_of(tmp_path / "last"), number_of(tmp_path / "best")) == (3, 2)
    assert find(tmp_path) == tmp_path / "last"


def test_a_failed_background_write_is_told_and_the_next_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer, original, failing = Writer(tmp_path), save_file, [2]

    def sometimes(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if tensors.get("weight", torch.zeros(1)).flatten()[0] in failing:
            raise OSError("no space left on device")
        original(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", sometimes)
    writer.put(state(1))
    writer.put(state(2))
    writer.put(state(3))
    assert "no space left on device" in caplog.text
    failing.append(4)
    writer.put(state(4))
    with pytest.raises(OSError, match="no space left"):
        writer.close()
    assert number_of(tmp_path / "last") == 3
