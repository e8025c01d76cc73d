"""How many trials fit at once: what every node holds, so that no trial waits for what can never come."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from orchestrator import launch
from orchestrator.config import Config, Problem
from orchestrator.launch import Placement


@dataclass(frozen=True)
class Node:
    """CPUs and GPUs of a machine that runs trials."""

    cpus: int
    gpus: int

    def holds(self, cpus: int, gpus: float) -> int:
        """How many workers of this size."""
        if self.cpus < cpus:
            return 0
        return min(self.cpus // cpus, int(self.gpus / gpus + 1e-6) if gpus else self.cpus)


@dataclass(frozen=True)
class Capacity:
    """The size of a trial, and how many run at once."""

    placement: Placement
    """Of each trial."""
    concurrent: int
    neighbours: int
    """Workers on the machine that holds the most."""
    growing: bool
    """Whether an autoscaler starts machines for them."""

    def __str__(self) -> str:
        workers, device = self.placement.workers, "GPU" if self.placement.gpu else "CPU"
        each = self.placement.gpus if self.placement.gpu else self.placement.cpus
        size = f"{workers} worker{'s' * (workers > 1)} with {each:g} {device}{'s' * (each > 1)}"
        where = f"Ray cluster {self.placement.address}" if self.placement.address else "this machine"
        grows = ", which grows for them" if self.growing else ""
        return f"{self.concurrent} trial{'s' * (self.concurrent > 1)} at once of {size} each, on {where}{grows}"


def capacity_here(config: Config) -> tuple[Capacity | None, list[Problem]]:
    """Of this machine, with a Ray of its own."""
    return _capacity(config, [Node(launch.cpu_count(), torch.cuda.device_count())], None, None, "this machine")


def capacity_of_cluster(config: Config, address: str) -> tuple[Capacity | None, list[Problem]]:
    """Of the connected cluster: what it has, and what its autoscaler may still start."""
    import ray
    from ray._private.state import state

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = [Node(int(r.get("CPU", 0)), int(r.get("GPU", 0))) for r in alive]
    limits = state.get_max_resources_from_cluster_config() or {}
    most = Node(int(limits.get("CPU", 0)), int(limits.get("GPU", 0))) if limits else None
    return _capacity(config, nodes, most, address, f"the cluster at {address}")


def _capacity(
    config: Config, nodes: list[Node], most: Node | None, address: str | None, where: str
) -> tuple[Capacity | None, list[Problem]]:
    """`most`: what an autoscaler's limits come to, where there is one."""
    all_gpus = sum(node.gpus for node in nodes) or (most.gpus if most else 0)
    tune, wanted = config.tune, config.scaling.workers
    gpus = tune.gpus if tune.gpus is not None else float(all_gpus > 0)
    workers = wanted if isinstance(wanted, int) else 1
    with_gpus = [node for node in nodes if node.gpus] if gpus else nodes
    share = min((int(node.cpus * gpus / node.gpus) for node in with_gpus if gpus), default=1)
    cpus = tune.cpus or max(share, 1)
    slots = [node.holds(cpus, gpus) for node in nodes]
    later = most.holds(cpus, gpus) if most else 0
    total = max(sum(slots), later)
    if total < workers:
        each = f"{cpus} CPU{'s' * (cpus > 1)}" + (f" and {gpus:g} GPU{'s' * (gpus > 1)}" if gpus else "")
        key = "tune.gpus" if tune.gpus else "tune.cpus" if tune.cpus else "scaling.workers"
        what = f"{workers} worker{'s' * (workers > 1)} with {each} each"
        has = f"{where} has room for {total} such worker{'s' * (total != 1)}"
        return None, [Problem(key, f"{key}: a trial needs {what}, and {has}: ask for less")]
    fit = total // workers
    placement = Placement(workers, gpus > 0, in_process=workers == 1, address=address, cpus=cpus, gpus=gpus or 1)
    concurrent = min(fit, tune.concurrent or fit)
    neighbours = max(min(max(slots, default=1), concurrent * workers), 1)
    return Capacity(placement, concurrent, neighbours, later > sum(slots)), []
