"""How many trials fit at once: what every node holds, so that no trial waits for what can never come."""

from __future__ import annotations

from collections.abc import Mapping
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


MOST_NODES = 1000
"""Of one kind, that are counted."""


def capacity_here(config: Config) -> tuple[Capacity | None, list[Problem]]:
    """Of this machine, with a Ray of its own."""
    return _capacity(config, [Node(launch.cpu_count(), torch.cuda.device_count())], [], None, "this machine")


def capacity_of_cluster(config: Config, address: str) -> tuple[Capacity | None, list[Problem]]:
    """Of the connected cluster: what it has, and what its autoscaler may still start."""
    import ray
    from ray._private.state import state

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    nodes = list(map(_node, alive))
    limits = state.get_cluster_config()
    groups = limits.node_group_configs if limits else ()
    most = [_node(group.resources) for group in groups for _ in range(min(max(group.max_count, 0), MOST_NODES))]
    return _capacity(config, nodes, most, address, f"the cluster at {address}")


def _node(resources: Mapping[str, float]) -> Node:
    return Node(int(resources.get("CPU", 0)), int(resources.get("GPU", 0)))


def _capacity(
    config: Config, nodes: list[Node], most: list[Node], address: str | None, where: str
) -> tuple[Capacity | None, list[Problem]]:
    """`most`: the machines that an autoscaler may start, where there is one."""
    all_gpus = sum(node.gpus for node in [*nodes, *most])
    tune, wanted = config.tune, config.scaling.workers
    gpus = tune.gpus if tune.gpus is not None else float(all_gpus > 0)
    workers = wanted if isinstance(wanted, int) else 1
    with_gpus = [node for node in [*nodes, *most] if node.gpus]
    share = min((int(node.cpus * gpus / node.gpus) for node in with_gpus if gpus), default=1)
    cpus = tune.cpus or max(share, 1)
    if gpus % 1 and workers > 1:
        told = f"tune.gpus = {gpus:g}: the {workers} workers of a trial cannot share a GPU: give each a whole one"
        return None, [Problem("tune.gpus", told)]
    slots = [node.holds(cpus, gpus) for node in nodes]
    grown = [node.holds(cpus, gpus) for node in most]
    later = sum(grown)
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
    neighbours = max(min(max([*slots, *grown], default=1), concurrent * workers), 1)
    return Capacity(placement, concurrent, neighbours, later > sum(slots)), []
