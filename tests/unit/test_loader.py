from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.data.cache import Cache
from orchestrator.data.loader import RING, Loader, View
from tests.pictures import noise, numbered_rows, write_cache
from trainables.augment import DRAWS, center_view, train_view
from trainables.contracts import Batch
from trainables.order import draws, order

TRAIN, VAL, BATCH, SIZE = 29, 11, 6, 10
VIEW = View("numbers", "", ("a", "b", "c"), SIZE, BATCH, seed=3, scale=0.5, fliplr=0.5, val_fraction=0.2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Samples with noise for pixels, in several shards."""
    rows = numbered_rows(TRAIN, VAL)
    for i, row in enumerate(rows):
        row.pixels[:] = noise(row.pixels.shape[0], row.pixels.shape[1], seed=i)
    return Cache(write_cache(tmp_path_factory.mktemp("caches") / "cache", rows, rows_per_shard=9))


def view(**changes: Any) -> View:
    return View(**{**vars(VIEW), **changes})


def frozen(batch: Batch) -> dict[str, Any]:
    """A batch's content, apart from its reused buffers."""
    return {
        "samples": batch.samples.tolist(),
        "labels": batch.labels.tolist(),
        "global_size": batch.global_size,
        "pixels": [hashlib.sha256(image.contiguous().numpy()).hexdigest() for image in batch.images],
    }


def epoch_of(cache: Cache, epoch: int = 0, first_step: int = 0, **options: Any) -> list[dict[str, Any]]:
    return [frozen(batch) for batch in Loader(cache, options.pop("view", VIEW), **options).train(epoch, first_step)]


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loader")]


def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread to come so far."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# ---------------------------------------------------------------------------------------- what is in a batch


def test_the_facts(cache: Cache) -> None:
    loader = Loader(cache, VIEW)
    info = loader.info
    assert (info.name, info.classes, info.train, info.val, info.skipped, info.imgsz) == (
        *("numbers", ("a", "b", "c")),
        *(TRAIN, VAL, 0, SIZE),
    )
    assert loader.steps == 5
    assert loader.id_of(0) == "train/000"
    assert loader.id_of(TRAIN) == f"val/{TRAIN:03d}"


def test_batches_hold_the_views_of_the_samples_in_order(cache: Cache) -> None:
    keys = cache.keys[:TRAIN]
    sequence = order(3, 2, keys)
    numbers = draws(3, 2, keys, DRAWS)
    for step, batch in enumerate(Loader(cache, VIEW).train(2)):
        members = sequence[step * BATCH : (step + 1) * BATCH]
        assert batch.samples.tolist() == members.tolist()
        assert batch.labels.tolist() == cache.labels[members].tolist()
        assert batch.global_size == len(batch) == len(members)
        assert str(batch.images.dtype) == "torch.uint8"
        for image, sample in zip(batch.images, members, strict=True):
            expected = np.empty((SIZE, SIZE, 3), np.uint8)
            train_view(cache.image(sample), expected, 0.5, 0.5, numbers[sample])
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_batches_are_channels_last_so_that_normalising_copies_once(cache: Cache) -> None:
    import torch

    batch = next(Loader(cache, VIEW).train(0))
    assert batch.images.shape == (BATCH, 3, SIZE, SIZE)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_epochs_and_seeds_differ_in_order_and_pixels(cache: Cache) -> None:
    first = epoch_of(cache)
    assert epoch_of(cache) == first
    for other in (epoch_of(cache, epoch=1), epoch_of(cache, view=view(seed=4))):
        assert [batch["samples"] for batch in other] != [batch["samples"] for batch in first]
        assert not {p for batch in other for p in batch["pixels"]} & {p for batch in first for p in batch["pixels"]}
        assert sorted(s for batch in other for s in batch["samples"]) == list(range(TRAIN))


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_nothing(cache: Cache, threads: int) -> None:
    assert epoch_of(cache, threads=threads) == epoch_of(cache)


@pytest.mark.parametrize("first_step", [1, 3, 4, 5])
def test_an_epoch_entered_in_its_middle_is_the_rest_of_it(cache: Cache, first_step: int) -> None:
    assert epoch_of(cache, first_step=first_step) == epoch_of(cache)[first_step:]


# ------------------------------------------------------------------------------------------ several ranks


@pytest.mark.parametrize("batch", [BATCH, 4, 64])
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_the_same_global_batches(cache: Cache, world_size: int, batch: int) -> None:
    alone = epoch_of(cache, view=view(batch=batch))
    ranks = [epoch_of(cache, view=view(batch=batch), rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(steps) for steps in ranks} == {len(alone)}, "also ranks with an empty share take part in every step"
    for whole, *shares in zip(alone, *ranks, strict=True):
        for key in ("samples", "labels", "pixels"):
            assert [value for part in shares for value in part[key]] == whole[key]
        assert {part["global_size"] for part in shares} == {whole["global_size"]}


@pytest.mark.parametrize("world_size", [1, 2, 3, 13])
def test_validation_shows_each_sample_once_over_all_ranks(cache: Cache, world_size: int) -> None:
    seen = []
    for rank in range(world_size):
        for batch in Loader(cache, VIEW, rank, world_size).validation():
            assert 0 < len(batch) <= -(-BATCH // world_size)
            for image, sample in zip(batch.images, batch.samples, strict=True):
                expected = np.empty((SIZE, SIZE, 3), np.uint8)
                center_view(cache.image(sample), expected)
                assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
            assert batch.labels.tolist() == cache.labels[batch.samples].tolist()
            seen += batch.samples.tolist()
    assert seen == list(range(TRAIN, TRAIN + VAL))


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_split_cut_from_training_is_the_same_for_all_ranks(tmp_path: Path, world_size: int) -> None:
    cut = Cache(write_cache(tmp_path / "cache", numbered_rows(30)))
    ranks = [Loader(cut, VIEW, rank, world_size) for rank in range(world_size)]
    assert {(loader.info.train, loader.info.val) for loader in ranks} == {(24, 6)}
    trained = [s for loader in ranks for batch in loader.train(0) for s in batch.samples]
    validated = [s for loader in ranks for batch in loader.validation() for s in batch.samples]
    assert sorted(trained + validated) == list(range(30))
    assert np.bincount(cut.labels[validated]).tolist() == [2, 2, 2]


# ------------------------------------------------------------------------------------- buffers and threads


class Counting:
    """A cache that counts the images taken from it, and fails at the `fails_at`-th."""

    def __init__(self, cache: Cache, fails_at: int = 0) -> None:
        self.cache, self.fails_at, self.taken = cache, fails_at, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)

    def __len__(self) -> int:
        return len(self.cache)

    def image(self, position: int) -> Any:
        self.taken += 1
        if self.taken == self.fails_at:
            raise OSError("stale file handle")
        return self.cache.image(position)


def test_a_batch_stays_as_it_is_until_the_next_is_asked_for(cache: Cache) -> None:
    counting = Counting(cache)
    batches: Iterator[Batch] = Loader(counting, VIEW).train(0)  # type: ignore[arg-type]
    expected = epoch_of(cache)
    for step in range(3):
        batch = next(batches)
        ahead = min((step + RING) * BATCH, TRAIN)
        until(lambda ahead=ahead: counting.taken >= ahead)  # type: ignore[misc]
        assert frozen(batch) == expected[step], "the loader has filled all the other buffers by now"
        assert counting.taken <= ahead, "it runs no further ahead"
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("threads", [1, 3])
def test_no_thread_is_left_when_the_epoch_is_over_or_left_early(cache: Cache, threads: int) -> None:
    loader = Loader(cache, VIEW, threads=threads)
    assert len(list(loader.train(0))) == 5
    assert loader_threads() == []
    for _ in loader.train(0):
        assert loader_threads()
        break
    assert loader_threads() == []
    batches = loader.train(0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert loader_threads() == []
    loader.train(0)
    assert loader_threads() == [], "an iterator that is never used starts none"


@pytest.mark.parametrize("fails_at", [1, BATCH + 2, TRAIN])
def test_an_error_in_a_thread_reaches_the_consumer(cache: Cache, fails_at: int) -> None:
    batches = Loader(Counting(cache, fails_at), VIEW, threads=2).train(0)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="stale file handle"):
        list(batches)
    assert loader_threads() == []


def test_an_error_of_the_consumer_ends_the_threads(cache: Cache) -> None:
    def consume() -> None:
        for _ in Loader(cache, VIEW).train(0):
            raise RuntimeError("the model failed")

    with pytest.raises(RuntimeError, match="the model failed"):
        consume()
    until(lambda: loader_threads() == [])
