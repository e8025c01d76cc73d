"""Samples and pixels of every step are the same in every tier, for every number of workers, and from any step on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from orchestrator import launch
from orchestrator.data import store
from orchestrator.data.build import build_cache
from orchestrator.data.cache import Stored
from orchestrator.data.loader import Loader, View
from orchestrator.data.manifest import read_manifest
from orchestrator.data.selection import select
from orchestrator.train import train
from tests.colours import write_colours
from tests.ray.conftest import MakeConfig
from tests.results import Received, received, untimed_rows
from trainables.augment import Augmentation

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


def test_an_epoch_without_a_cache_can_be_entered_in_its_middle(cluster: str, colours: Path, tmp_path: Path) -> None:
    manifest = read_manifest(str(colours))
    chosen, used = select(manifest, 0.2, 1.0, seed=0)
    view = View("colours", "", manifest.classes, 8, 5, 0, chosen.train, chosen.val, Augmentation(0.5, 0.5))
    stored = Stored("imagefolder", 9)
    assert launch.connect(cluster, verbose=False)
    try:
        caches = [
            build_cache(tmp_path / str(pixels), used, replace(stored, pixels=pixels), 0, lambda done, total: None)
            for pixels in (True, False)
        ]
        assert caches[1].bytes < caches[0].bytes
        disk, none = (Loader(cache, view, rank=1, world_size=2) for cache in caches)
        for epoch, first in ((0, 0), (1, 2), (1, disk.steps - 1), (2, disk.steps)):
            batches = [[b.images.clone() for b in loader.train(epoch, first)] for loader in (disk, none)]
            assert len(batches[0]) == len(batches[1]) == disk.steps - first
            assert all(torch.equal(one, other) for one, other in zip(*batches, strict=True))
        lost = write_colours(tmp_path / "colours")
        listed = read_manifest(str(lost))
        selection, _ = select(listed, 0.2, 1.0, seed=0)
        labels = build_cache(tmp_path / "labels", listed, replace(stored, pixels=False), 0, lambda done, total: None)
        (lost / "train" / "red" / "0.png").unlink()
        with pytest.raises(OSError, match=r"train/red/0\.png cannot be read any more"):
            list(Loader(labels, replace(view, train=selection.train, val=selection.val)).train(0))
    finally:
        launch.disconnect()
