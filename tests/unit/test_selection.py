from __future__ import annotations

import itertools
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
import pytest

from orchestrator.data import Source
from orchestrator.data.manifest import Manifest, read_manifest
from orchestrator.data.selection import Selection, select
from trainables.contracts import Instance, Sample
from trainables.order import Keys, sample_keys

Read = Callable[[Iterable[Sample]], Manifest]
COUNTS = {"common": 60, "usual": 40, "rare": 10, "single": 1}
CLASSES = tuple(COUNTS)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """The manifest of samples."""
    made = types.ModuleType("made_samples")
    monkeypatch.setitem(sys.modules, "made_samples", made)

    def of(samples: Iterable[Sample]) -> Manifest:
        made.read = lambda location: Source("made", CLASSES, list(samples))  # type: ignore[attr-defined]
        return read_manifest("anywhere", "made_samples:read")

    return of


def images(counts: dict[str, int], split: str = "train", first: int = 0) -> list[Sample]:
    return [
        Sample(f"{split}/{name}/{i}", split, f"/{split}/{name}/{i}", "1:1", CLASSES.index(name))
        for name, count in counts.items()
        for i in range(first, first + count)
    ]


def names(manifest: Manifest, keys: Keys) -> list[str]:
    ids = manifest.table["id"].to_pylist()
    by_key = dict(zip(sample_keys(ids).tolist(), ids, strict=True))
    return [by_key[key] for key in keys.tolist()]


def per_class(manifest: Manifest, keys: Keys) -> dict[str, int]:
    return dict(Counter(name.split("/")[1] for name in names(manifest, keys)))


def chosen(manifest: Manifest, fraction: float = 1.0, seed: int = 0) -> Selection:
    return select(manifest, 0.2, fraction, seed)[0]


def test_without_a_val_split_a_part_of_each_class_is_held_back(read: Read) -> None:
    manifest = read(images(COUNTS))
    selection, used = select(manifest, 0.2, 1.0, 0)
    assert per_class(manifest, selection.val) == {"common": 12, "usual": 8, "rare": 2}
    assert per_class(manifest, selection.train) == {"common": 48, "usual": 32, "rare": 8, "single": 1}
    assert not set(selection.train.tolist()) & set(selection.val.tolist())
    assert selection.available == len(selection.train) == 89
    assert used is manifest, "so that a cache of the whole set is found"


def test_a_val_split_is_taken_as_it_is(read: Read) -> None:
    manifest = read(images(COUNTS) + images({"rare": 3, "single": 2}, "val"))
    selection = chosen(manifest)
    assert per_class(manifest, selection.train) == COUNTS
    assert sorted(names(manifest, selection.val)) == [s.id for s in images({"rare": 3, "single": 2}, "val")]


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_smaller_fractions_lie_within_larger_ones(read: Read, seed: int) -> None:
    manifest = read(images(COUNTS))
    parts = [set(chosen(manifest, fraction, seed).train.tolist()) for fraction in (0.01, 0.1, 0.2, 0.5, 0.9, 1.0)]
    assert all(smaller < larger for smaller, larger in itertools.pairwise(parts))


def test_a_fraction_is_one_of_each_class_and_keeps_the_rarest(read: Read) -> None:
    manifest = read(images(COUNTS))
    for fraction, expected in {0.5: (24, 16, 4, 1), 0.25: (12, 8, 2, 1), 0.001: (1, 1, 1, 1)}.items():
        selection = chosen(manifest, fraction)
        assert per_class(manifest, selection.train) == dict(zip(CLASSES, expected, strict=True))
        assert selection.available == 89


@pytest.mark.parametrize("val", [0, 7])
def test_validation_stays_whole_at_any_fraction(read: Read, val: int) -> None:
    manifest = read(images(COUNTS) + images({"common": val}, "val"))
    whole = chosen(manifest).val
    assert len(whole) == (val or 22)
    for fraction in (0.05, 0.5):
        selection, used = select(manifest, 0.2, fraction, 0)
        assert selection.val.tolist() == whole.tolist()
        assert sorted(used.table["id"].to_pylist()) == sorted(
            names(manifest, selection.train) + names(manifest, selection.val)
        ), "the cache of a part holds what that part needs"
        assert used.fingerprint != manifest.fingerprint


def test_seeds_choose_otherwise(read: Read) -> None:
    manifest = read(images(COUNTS))
    for part in ("train", "val"):
        picks = [frozenset(getattr(chosen(manifest, 0.3, seed), part).tolist()) for seed in (0, 0, 1, 2)]
        assert len(set(picks)) == 3, part
        assert picks[0] == picks[1]


def test_more_images_move_few_of_the_others(read: Read) -> None:
    """A sample's side goes by its own hash: of another class nothing moves, of the same one what the count asks for."""
    before = read(images(COUNTS))
    after = read(images(COUNTS) + images({"usual": 10}, first=1000))
    for part in ("train", "val"):
        old, new = (set(names(m, getattr(chosen(m, 0.5), part))) for m in (before, after))
        moved = old ^ new
        assert all("/usual/" in name for name in moved)
        added = {name for name in new if int(name.split("/")[2]) >= 1000}
        assert added
        assert len(moved - added) <= 5, "of 40"
    turned = read(images(COUNTS)[::-1])
    assert chosen(turned, 0.3).train.tolist() == chosen(before, 0.3).train.tolist(), "nor does the order of listing"


def scene(number: int, *labels: int) -> Sample:
    objects = tuple(Instance(label, (0, 0, 1, 1)) for label in labels)
    return Sample(f"train/{number:03d}", "train", f"/{number}", "1:1", objects=objects)


def test_images_with_objects_count_for_their_rarest_class(read: Read) -> None:
    """100 scenes with common objects; 10 of them have a rare one too, and 20 more are empty."""
    rare, plain, empty = range(10), range(10, 100), range(100, 120)
    samples = [scene(i, 0, 0, 2) for i in rare] + [scene(i, 0) for i in plain] + [scene(i) for i in empty]
    manifest = read(samples)
    selection = chosen(manifest, 0.5)

    def counts(keys: Keys) -> list[int]:
        numbers = {int(name.split("/")[1]) for name in names(manifest, keys)}
        return [len(numbers & set(group)) for group in (rare, plain, empty)]

    assert counts(selection.val) == [2, 18, 4]
    assert counts(selection.train) == [4, 36, 8]


def test_a_class_in_one_image_only_is_trained_on(read: Read) -> None:
    samples = [scene(i, 0) for i in range(50)] + [scene(50, 0, 3)]
    for seed, fraction in itertools.product(range(8), (0.02, 1.0)):
        manifest = read(samples)
        assert "train/050" in names(manifest, chosen(manifest, fraction, seed).train)


def test_images_without_any_object_are_one_class(read: Read) -> None:
    manifest = read([scene(i) for i in range(10)])
    selection = chosen(manifest, 0.5)
    assert (len(selection.val), len(selection.train)) == (2, 4)
    assert selection.train.dtype == np.uint64
