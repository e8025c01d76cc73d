"""Samples and pixels of every step are the same in every tier, for every number of workers, and from any step on."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import launch
from orchestrator.data import store
from orchestrator.train import train
from tests.ray.conftest import MakeConfig
from tests.results import Received, received, untimed_rows

TIERS = {"disk": "disk", "ram": "ram", "false": False}
AUGMENTED = {"scale": 0.4, "flipud": 0.3, "multi_scale": 0.5, "brightness": 0.3, "hue": 0.1, "imgsz": 64, "epochs": 2}


@pytest.fixture(scope="module")
def runs(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """Run folders by tier and number of workers."""
    caches = str(tmp_path_factory.mktemp("tiers"))
    made: dict[tuple[str, int], Path] = {}
    for tier, setting in TIERS.items():
        for workers in (1, 3):
            config = make_config(workers, cache=setting, cache_dir=caches, record_samples=True, **AUGMENTED)
            result = train(config)
            assert result.summary["cache"]["tier"] == tier
            made[tier, workers] = result.folder
    return made


@pytest.fixture(scope="module")
def records(runs: dict[tuple[str, int], Path]) -> dict[tuple[str, int], Received]:
    return {key: received(run) for key, run in runs.items()}


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("tier", TIERS)
def test_ids_and_pixels_do_not_depend_on_tier_or_workers(
    records: dict[tuple[str, int], Received], tier: str, workers: int
) -> None:
    first, this = records["disk", 1], records[tier, workers]
    assert this.ranks == workers
    assert this.batches == first.batches
    assert this.pixels == first.pixels
    assert this.validation_pixels == first.validation_pixels
    assert len({hash_ for batch in first.pixels.values() for hash_ in batch}) > 40, "every view is another"


def test_losses_do_not_depend_on_the_tier(runs: dict[tuple[str, int], Path]) -> None:
    for workers in (1, 3):
        assert untimed_rows(runs["ram", workers]) == untimed_rows(runs["disk", workers])
        assert untimed_rows(runs["false", workers]) == untimed_rows(runs["disk", workers])


def test_nothing_stays_in_memory(runs: dict[tuple[str, int], Path]) -> None:
    assert not [path for path in store.ram_root().glob("*") if path.is_dir()]


@pytest.mark.parametrize("tier", ["ram", "false"])
def test_a_run_in_this_process_needs_no_cluster_of_its_own(make_config: MakeConfig, cluster: str, tier: str) -> None:
    assert launch.connect(cluster, verbose=False)
    try:
        config = make_config(cache=TIERS[tier], epochs=1, record_samples=True)
        here = received(train(config, local=True).folder)
        disk = received(train(make_config(cache="disk", epochs=1, record_samples=True), local=True).folder)
    finally:
        launch.disconnect()
    assert (here.batches, here.pixels, here.validation_pixels) == (disk.batches, disk.pixels, disk.validation_pixels)
