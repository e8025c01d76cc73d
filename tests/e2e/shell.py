"""The command line as a user types it: processes of the installed command, and a look at what they leave behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

COMMAND = Path(sys.executable).with_name("orchestrator")
MARK = "ORCHESTRATOR_TEST_COMMAND"
"""In the environment of a command and so of all its children, however they detach: what is left behind has it."""

QUIT_SECONDS = 30.0
"""How long children of a command that has ended may take to end too; on an idle machine it is a second."""


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str


class Running:
    """A command in a session of its own, whose output goes to files."""

    def __init__(self, arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
        self.mark = uuid.uuid4().hex
        self._files = [folder / f".{self.mark}.{name}" for name in ("out", "err")]
        with self._files[0].open("w") as out, self._files[1].open("w") as err:
            self.process = subprocess.Popen(
                [str(COMMAND), *arguments],
                cwd=folder,
                env={**environment, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return "\n".join(file.read_text() for file in self._files)

    def press_ctrl_c(self) -> None:
        """What a terminal does: SIGINT to the whole foreground process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def terminate(self) -> None:
        """What a supervisor or a cluster does: SIGTERM to the process that it started."""
        self.process.send_signal(signal.SIGTERM)

    def wait_until(self, happened: Callable[[], object], seconds: float = 120) -> None:
        """Wait while the command runs. Fails when it ends before."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.output}"
            assert time.monotonic() < deadline, self.output
            time.sleep(0.1)

    def wait(self, seconds: float = 240) -> Finished:
        """Wait for the end. Fails where the command, or any process that it started, does not end."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.output}") from None
        finally:
            left = self._kill_what_is_left(QUIT_SECONDS if self.process.poll() is not None else 0)
        out, err = (file.read_text() for file in self._files)
        for file in self._files:
            file.unlink()
        assert not left, f"left behind: {left}"
        return Finished(self.process.returncode, out, err)

    def kill(self) -> None:
        """End it and all its children at once."""
        self._kill_what_is_left(0)
        self.process.wait(10)

    def _kill_what_is_left(self, patience: float) -> list[str]:
        deadline = time.monotonic() + patience
        while (processes := _marked(self.mark)) and time.monotonic() < deadline:
            time.sleep(0.1)
        names = []
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                names.append(" ".join(process.cmdline())[:200])
                process.kill()
        return names


def _marked(mark: str) -> list[psutil.Process]:
    """The living processes that have the mark of a command."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
    return found


@dataclass
class Shell:
    """A folder to type commands in, with storage of its own below it and the session's cache."""

    folder: Path
    environment: dict[str, str]
    running: list[Running] = field(default_factory=list)

    @property
    def storage(self) -> Path:
        return self.folder / "runs"

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def config(self, **changes: Any) -> str:
        """The name of a config file: the digits and a model of the user's own, beside the file, that learns quickly."""
        self.write("mymodels.py", MODELS)
        small = {"data": "digits", "model": "mymodels:conv", "imgsz": 32, "epochs": 2, "batch": 256, "lr": 0.01}
        return self.write("config.yaml", yaml.safe_dump(small | changes)).name

    def start(self, *arguments: str, **environment: str) -> Running:
        command = Running(list(arguments), self.folder, self.environment | environment)
        self.running.append(command)
        return command

    def run(self, *arguments: str, seconds: float = 240, **environment: str) -> Finished:
        return self.start(*arguments, **environment).wait(seconds)

    def close(self) -> None:
        for command in self.running:
            command.kill()


MODELS = """
import os, time
from pathlib import Path

import torch
from torch import nn


def conv(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, num_classes)
    )


class slow(nn.Module):
    '''Takes STEP_SECONDS more per training step.'''

    def __init__(self, num_classes):
        super().__init__()
        self.body = conv(num_classes)

    def forward(self, images):
        if self.training and images.device.type != "meta":
            time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
        return self.body(images)


class tells(nn.Module):
    '''Writes down in how many threads torch runs in each worker.'''

    def __init__(self, num_classes):
        super().__init__()
        self.body = conv(num_classes)

    def forward(self, images):
        if images.device.type != "meta":
            (Path(__file__).parent / f"threads-{os.getpid()}.txt").write_text(str(torch.get_num_threads()))
        return self.body(images)


class breaks(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = conv(num_classes)

    def forward(self, images):
        if images.device.type != "meta":
            raise LookupError("this model was never finished")
        return self.body(images)
"""


# ---------------------------------------------------------------------------------- what a run left behind


def summary(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return values


def mlflow_runs(store: str) -> list[Any]:
    """All runs of an MLflow store, of all experiments."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def mlflow_history(store: str, run_id: str, metric: str) -> dict[int, float]:
    """A metric by step."""
    from mlflow import MlflowClient

    points = MlflowClient(tracking_uri=store).get_metric_history(run_id, metric)
    assert len({point.step for point in points}) == len(points), f"{metric} was logged twice"
    return {point.step: point.value for point in points}


def local_store(storage: Path) -> str:
    return f"sqlite:///{storage / 'mlflow.db'}"
