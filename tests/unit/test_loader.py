from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from faster_coco_eval.core import mask as mask_api

from orchestrator.data.cache import Cache
from orchestrator.data.loader import RING, Loader, View
from orchestrator.data.objects import resolve
from tests.pictures import noise, numbered_rows, write_cache
from tests.pictures import row as make_row
from trainables.augment import Augmentation, center_view, train_view
from trainables.contracts import Batch, Instance, Sample
from trainables.order import draws, order

TRAIN, VAL, BATCH, SIZE = 29, 11, 6, 10
HOW = Augmentation(scale=0.5, fliplr=0.5)
KEYS = np.array([row.key for row in numbered_rows(TRAIN, VAL)], np.uint64)
VIEW = View("numbers", "", ("a", "b", "c"), SIZE, BATCH, 3, KEYS[:TRAIN], KEYS[TRAIN:], HOW)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Samples with noise for pixels, in several shards."""
    rows = numbered_rows(TRAIN, VAL)
    for i, row in enumerate(rows):
        assert row.pixels is not None
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
    numbers = draws(3, 2, keys, HOW.draws)
    for step, batch in enumerate(Loader(cache, VIEW).train(2)):
        members = sequence[step * BATCH : (step + 1) * BATCH]
        assert batch.samples.tolist() == members.tolist()
        assert batch.labels.tolist() == cache.labels[members].tolist()
        assert batch.global_size == len(batch) == len(members)
        assert str(batch.images.dtype) == "torch.uint8"
        for image, sample in zip(batch.images, members, strict=True):
            expected = np.empty((SIZE, SIZE, 3), np.uint8)
            train_view(cache.image(sample), expected, HOW, numbers[sample])
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


def test_samples_that_the_cache_left_out_are_passed_over(tmp_path: Path) -> None:
    rows = numbered_rows(TRAIN, VAL)
    del rows[5], rows[TRAIN + 3]
    loader = Loader(Cache(write_cache(tmp_path / "cache", rows)), VIEW)
    assert (loader.info.train, loader.info.val) == (TRAIN - 1, VAL - 1)
    trained = [loader.id_of(s) for batch in loader.train(0) for s in batch.samples]
    whole = [name for name in epoch_ids(tmp_path) if name != "train/005"]
    assert trained == whole, "the others keep their order"


def epoch_ids(folder: Path) -> list[str]:
    loader = Loader(Cache(write_cache(folder / "whole", numbered_rows(TRAIN, VAL))), VIEW)
    return [loader.id_of(s) for batch in loader.train(0) for s in batch.samples]


# ------------------------------------------------------------------------------------------- views and labels


def test_batches_of_multi_scale_have_one_size_on_all_ranks(cache: Cache) -> None:
    varied = view(imgsz=96, multi_scale=0.5)
    ranks = [[tuple(b.images.shape[1:]) for b in Loader(cache, varied, rank, 3).train(0)] for rank in range(3)]
    assert ranks[0] == ranks[1] == ranks[2]
    sizes = {
        shape for epoch in range(8) for shape in (tuple(b.images.shape[2:]) for b in Loader(cache, varied).train(epoch))
    }
    assert sizes == {(64, 64), (96, 96), (128, 128)}
    assert {tuple(b.images.shape[2:]) for b in Loader(cache, varied).validation()} == {(96, 96)}


def test_images_of_the_right_size_are_copied_as_they_are(tmp_path: Path) -> None:
    rows = [make_row(f"train/{i}", i + 1, 0, noise(SIZE, SIZE, seed=i)) for i in range(9)]
    still = view(augmentation=Augmentation(), train=np.arange(1, 9, dtype=np.uint64), val=np.array([9], np.uint64))
    loader = Loader(Cache(write_cache(tmp_path / "cache", rows)), still)
    for batch in chain(loader.train(0), loader.validation()):
        for image, sample in zip(batch.images, batch.samples, strict=True):
            assert np.array_equal(image.permute(1, 2, 0).numpy(), rows[sample].pixels)


def white_rectangles(folder: Path, masks: bool = True, count: int = 12, stored: float = 1.0) -> Cache:
    """White rectangles on black, of class 1, at a part of their full scale."""
    rows = []
    for i in range(count):
        pixels = np.zeros((60 + i, 90 - i, 3), np.uint8)
        pixels[20:40, 30:60] = 255
        outline = [[30.0, 20.0, 60.0, 20.0, 60.0, 40.0, 30.0, 40.0]] if masks else None
        sample = Sample(f"{i}", "train", "", "", objects=(Instance(1, (30, 20, 60, 40), outline),))
        row = make_row(f"{i}", i + 1, -1, pixels, resolve(sample, pixels.shape[:2], 1)[0])
        side = (round(pixels.shape[1] * stored), round(pixels.shape[0] * stored))
        shrunk = cv2.resize(pixels, side, interpolation=cv2.INTER_AREA)
        rows.append(replace(row, pixels=np.ascontiguousarray(shrunk, np.uint8)))
    return Cache(write_cache(folder / "cache", rows))


def scene(**changes: Any) -> View:
    keys = np.arange(1, 13, dtype=np.uint64)
    how = Augmentation(scale=0.5, fliplr=0.5, flipud=0.5)
    return view(
        **{"imgsz": 128, "train": keys, "val": keys, "augmentation": how, "fit": "long", "masks": True} | changes
    )


def test_boxes_and_masks_of_training_views_follow_the_pixels(tmp_path: Path) -> None:
    """A white rectangle is found again where its box and mask say, in every view."""
    loader, seen = Loader(white_rectangles(tmp_path), scene()), 0
    for batch in chain(*(loader.train(epoch) for epoch in range(3))):
        assert batch.targets is not None
        assert batch.truths is None
        for image, targets in zip(batch.images, batch.targets, strict=True):
            white = image.permute(1, 2, 0).numpy()[:, :, 0] > 200
            for box, label, mask in zip(targets.boxes, targets.labels, targets.masks, strict=True):  # type: ignore[arg-type]
                seen += 1
                ys, xs = np.nonzero(white)
                painted = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
                assert np.abs(box.numpy() - painted).max() <= 2
                overlap = (white & (mask.numpy() > 0)).sum() / (white | (mask.numpy() > 0)).sum()
                assert overlap > 0.85
                assert label == 1
    assert seen >= 30


@pytest.mark.parametrize("stored", [1.0, 0.5])
def test_truths_of_validation_are_in_original_pixels_and_say_where_the_view_shows_them(
    tmp_path: Path, stored: float
) -> None:
    cache = white_rectangles(tmp_path, stored=stored)
    for batch in Loader(cache, scene()).validation():
        assert batch.targets is None
        assert batch.truths is not None
        for image, truth, sample in zip(batch.images, batch.truths, batch.samples, strict=True):
            assert truth.size == cache.full_size(sample)
            assert truth.boxes.tolist() == [[30, 20, 60, 40]]
            assert truth.labels.tolist() == [1]
            assert truth.masks is not None
            drawn = mask_api.decode(dict(truth.masks[0]))
            assert drawn.shape == truth.size
            assert (drawn.sum(), drawn[20:40, 30:60].sum()) == (600, 600)
            ys, xs = np.nonzero(image.permute(1, 2, 0).numpy()[:, :, 0] > 127)
            painted = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) / truth.scale
            painted += (truth.left, truth.top) * 2
            assert np.abs(painted - truth.boxes[0].numpy()).max() <= 1.2 / truth.scale + 0.5 / stored


def test_masks_are_left_out_where_they_are_not_wanted_and_boxes_stand_in_for_them_where_they_lack(
    tmp_path: Path,
) -> None:
    with_masks, without = white_rectangles(tmp_path / "a"), white_rectangles(tmp_path / "b", masks=False)
    for cache, wanted, expected in [(with_masks, False, None), (without, False, None), (without, True, 600)]:
        loader = Loader(cache, scene(masks=wanted, augmentation=Augmentation()))
        assert loader.info.masks == wanted
        truths = next(loader.validation()).truths or []
        targets = next(loader.train(0)).targets or []
        assert [t.masks and mask_api.area(dict(t.masks[0])) for t in truths] == [expected] * len(truths)
        assert all((t.masks is None) == (expected is None) for t in targets)
        assert len(targets) == len(truths) == BATCH


def test_the_facts_tell_the_most_objects_and_the_largest_batch(tmp_path: Path) -> None:
    rows = numbered_rows(5, 2)
    boxes = tuple(Instance(0, (1, 1, 5, 5)) for _ in range(4))
    for i, row in enumerate(rows):
        sample = Sample(row.id, "train", "", "", objects=boxes[: min(i, 3)] if i < 5 else boxes)
        rows[i] = replace(row, objects=resolve(sample, (12, 12), 1)[0])
    keys = np.array([row.key for row in rows], np.uint64)
    facts = view(imgsz=96, multi_scale=0.5, train=keys[:5], val=keys[5:])
    info = Loader(Cache(write_cache(tmp_path / "cache", rows)), facts).info
    assert (info.objects, info.masks, info.largest) == (3, False, 128)
    assert Loader(Cache(write_cache(tmp_path / "plain", numbered_rows(5, 2))), view(imgsz=96)).info.objects == 0


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


def test_epochs_take_turns_with_the_same_buffers(cache: Cache) -> None:
    def places(batches: Iterator[Batch]) -> set[int]:
        return {batch.images.data_ptr() for batch in batches}

    loader = Loader(cache, VIEW)
    first = places(loader.train(0))
    assert len(first) == RING
    assert places(loader.train(1)) == first, "pages that are in place need not be made again"
    assert places(loader.validation()) <= first
    batches = loader.train(2)
    held = next(batches)
    assert held.images.data_ptr() in first
    assert not places(loader.validation()) & first, "in the middle of an epoch they are in use"
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
