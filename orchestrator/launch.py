"""Where a run takes place: in this process, on a Ray of its own on this machine, or on a cluster that is named."""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.config import Config, ConfigError, Problem

OBJECT_STORE_BYTES = 256 * 2**20
"""Of a Ray that we start: only metadata passes through it, pixels live in the cache."""

REACH_SECONDS = 10.0
"""How long a cluster that is named may take to accept a connection."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    # the controller polls its workers this often; the default of 2 s would be added to the end of every run
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Environment of Ray, where the user has not set it: no telemetry, quick control, nothing on the screen."""


_STARTER = ThreadPoolExecutor(1, thread_name_prefix="ray-start")
"""Its thread lives as long as the process: Ray's servers end with the thread that started them (PR_SET_PDEATHSIG)."""


@dataclass(frozen=True)
class Placement:
    """Where and in how many processes a run trains."""

    workers: int
    gpu: bool
    in_process: bool = False
    address: str | None = None
    """The cluster that was named; None for this machine."""
    cpus: int = 1
    """Of each worker."""
    gpus: float = 1
    """Of each worker, where `gpu`."""

    @property
    def resources(self) -> dict[str, float]:
        """Of each worker, as Ray counts."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpu else {})

    def __str__(self) -> str:
        device = "GPU" if self.gpu else "CPU"
        if self.in_process:
            return f"1 {device}, in this process, {cpu_count()} CPU threads"
        where = f"Ray cluster {self.address}" if self.address else "this machine, with Ray"
        return f"{self.workers} worker{'s' if self.workers > 1 else ''} with a {device} each, on {where}"


def cpu_count() -> int:
    """CPUs that this process may use: its affinity, and the quota of its container (cgroup v2)."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return allowed if quota == "max" else max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        return allowed


def all_cpus() -> int:
    """CPUs of the cluster that this process is connected to, else of this machine."""
    if "ray" in sys.modules:
        import ray

        if ray.is_initialized():
            return int(ray.cluster_resources().get("CPU", 1))
    return cpu_count()


def devices(gpu: bool) -> int:
    """GPUs or CPUs that the connected cluster has at this moment, without what its autoscaler may still start."""
    import ray

    return int(ray.cluster_resources().get("GPU" if gpu else "CPU", 0))


def named_cluster(config: Config) -> str | None:
    """The address of the cluster that the config or the environment names."""
    return config.scaling.address or os.environ.get("RAY_ADDRESS") or None


def place_here(config: Config, local: bool, gpus: int) -> tuple[Placement | None, list[Problem]]:
    """Decide for a run on this machine with so many GPUs (`local`: in this process, whatever there is)."""
    workers, cpus = config.scaling.workers, cpu_count()
    assert not isinstance(workers, list)
    if local:
        if workers not in ("auto", 1):
            message = f"scaling.workers = {workers}: --local runs in one process; leave out --local or the key"
            return None, [Problem("scaling.workers", message)]
        return Placement(1, gpus > 0, in_process=True), []
    if workers == "auto":
        return Placement(max(gpus, 1), gpus > 0, in_process=gpus <= 1), []
    most, what = (gpus, "GPU") if gpus else (cpus, "CPU")
    if workers > most:
        return None, [_too_many(workers, f"this machine has {most} {what}{'s' if most > 1 else ''}", most)]
    return Placement(workers, gpus > 0), []


def place_on_cluster(config: Config, address: str) -> tuple[Placement | None, list[Problem]]:
    """Decide for the connected cluster: what it has, and what its autoscaler may still start."""
    import ray
    from ray._private.state import state

    nodes = [node for node in ray.nodes() if node["Alive"]]
    most = {kind: int(sum(node["Resources"].get(kind, 0) for node in nodes)) for kind in ("CPU", "GPU")}
    growth = state.get_max_resources_from_cluster_config() or {}
    most = {kind: max(have, int(growth.get(kind, 0))) for kind, have in most.items()}
    kind = "GPU" if most["GPU"] else "CPU"
    computing = [node for node in nodes if node["Resources"].get("CPU", 0) >= 1]
    wanted = config.scaling.workers
    assert not isinstance(wanted, list)
    workers = wanted if wanted != "auto" else most["GPU"] or max(len(computing), 1)
    if workers > most[kind]:
        has = f"the cluster at {address} can give {most[kind]} {kind}s on {len(nodes)} nodes"
        return None, [_too_many(workers, has, most[kind])]
    return Placement(workers, kind == "GPU", address=address), []


def check_batch(config: Config, placement: Placement | None) -> list[Problem]:
    """A batch is global: each worker needs an image of it."""
    workers = placement.workers if placement else 1
    if config.batch == -1 or config.batch >= workers:
        return []
    message = f"batch = {config.batch} is global, and each of {workers} workers needs an image of it"
    return [Problem("batch", f"{message}: set batch to {workers} or more, or scaling.workers to {config.batch}")]


def connect(address: str | None, verbose: bool) -> bool:
    """Connect to the named cluster or start Ray on this machine. False where this process was connected already.

    Raises ConfigError where no cluster answers, or Ray does not start.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return False
    options: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    try:
        if address:
            _reach(address)
            ray.init(address, **options)
        else:
            ray.init(
                "local",
                num_cpus=cpu_count(),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                **options,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"no Ray cluster answers at {address}" if address else "Ray does not start on this machine"
        raise ConfigError(f"{where}: {error}") from error
    return True


def connect_early(config: Config | None, local: bool, verbose: bool, surely: bool = False) -> Future[bool] | None:
    """`connect` in a thread, beside the imports and checks of the driver, where a run surely needs a Ray of its own."""
    workers = 1 if surely else config.scaling.workers if config else "auto"
    if config is None or local or named_cluster(config) or not isinstance(workers, int) or workers > cpu_count():
        return None
    return _STARTER.submit(connect, None, verbose)


def disconnect() -> None:
    """Leave the cluster; a Ray that `connect` started ends."""
    if "ray" in sys.modules:
        import ray

        ray.shutdown()


def _reach(address: str) -> None:
    """Raises ConnectionError where nobody listens at host:port: `ray.init` would try again for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise ConnectionError(str(error)) from error


def _too_many(workers: int, has: str, most: int) -> Problem:
    advice = f"set scaling.workers to {most} or less, or to auto" if most else "set scaling.workers to auto"
    return Problem("scaling.workers", f"scaling.workers = {workers}: {has}; {advice}")
