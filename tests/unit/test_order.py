from __future__ import annotations

import itertools

import numpy as np
import pytest

from trainables.order import draws, order, sample_keys, seed_of, share, stratified

IDS = [f"train/cat/{i}.jpg" for i in range(97)]
KEYS = sample_keys(IDS)


def sequence(seed: int, epoch: int, ids: list[str]) -> list[str]:
    return [ids[i] for i in order(seed, epoch, sample_keys(ids))]


def test_the_order_of_format_version_1_is_kept() -> None:
    """Checkpoints in the middle of an epoch rely on it. Another order needs another trainables.order.FORMAT_VERSION."""
    keys = sample_keys([f"{i:04d}" for i in range(10)])
    assert keys[:2].tolist() == [6915926873101881444, 10684345787160923938]
    assert order(0, 0, keys).tolist() == [2, 3, 5, 9, 7, 4, 0, 6, 8, 1]
    assert order(0, 1, keys).tolist() == [5, 0, 3, 7, 1, 4, 8, 6, 9, 2]
    assert order(7, 0, keys).tolist() == [4, 0, 9, 3, 1, 6, 7, 8, 2, 5]
    expected = [[0.7010282850008079, 0.8584204197925256], [0.8953239404723056, 0.7295565532991094]]
    assert draws(7, 3, keys[:2], 2).tolist() == expected
    assert stratified(7, keys, np.arange(10) % 2, 0.4).tolist() == [0, 6, 7, 9]
    assert seed_of(1, 2, 3) == 7510213797696614745


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_an_order_is_a_permutation_that_depends_on_seed_and_epoch_only(seed: int) -> None:
    first = order(seed, 0, KEYS)
    assert sorted(first) == list(range(len(KEYS)))
    assert np.array_equal(first, order(seed, 0, KEYS))
    for other in (order(seed, 1, KEYS), order(seed ^ 1, 0, KEYS), np.arange(len(KEYS))):
        assert np.mean(first == other) < 0.2


def test_samples_keep_their_order_when_others_come_go_or_move() -> None:
    full = sequence(3, 5, IDS)
    fewer = IDS[::2]
    assert sequence(3, 5, fewer) == [name for name in full if name in set(fewer)]
    assert sequence(3, 5, IDS[::-1]) == full


def test_every_position_of_the_order_is_equally_likely() -> None:
    keys, epochs = sample_keys("abcdef"), 3000
    places = np.stack([np.argsort(order(0, epoch, keys)) for epoch in range(epochs)])
    counts = np.stack([np.bincount(places[:, i], minlength=6) for i in range(6)])
    assert np.abs(counts / epochs - 1 / 6).max() < 0.03


def test_draws_are_uniform_independent_and_belong_to_the_sample() -> None:
    keys = sample_keys(map(str, range(5000)))
    numbers = draws(1, 2, keys, 3)
    assert numbers.shape == (5000, 3)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert np.abs(numbers.mean(0) - 0.5).max() < 0.02
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.05
    assert np.array_equal(draws(1, 2, keys[7:9], 3), numbers[7:9])
    for other in (draws(1, 3, keys, 3), draws(2, 2, keys, 3)):
        assert abs(np.corrcoef(numbers[:, 0], other[:, 0])[0, 1]) < 0.05
    assert abs(np.corrcoef(np.argsort(order(1, 2, keys)), numbers[:, 0])[0, 1]) < 0.05


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_shares_partition_every_batch_evenly(world_size: int) -> None:
    for size in range(20):
        parts = [list(range(size))[share(size, rank, world_size)] for rank in range(world_size)]
        assert list(itertools.chain(*parts)) == list(range(size))
        lengths = [len(part) for part in parts]
        assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_stratified_parts_are_nested_and_proportional(seed: int) -> None:
    labels = np.repeat([0, 1, 2, 3], [50, 30, 10, 7])
    parts = [set(stratified(seed, KEYS, labels, fraction).tolist()) for fraction in (0.1, 0.2, 0.5, 0.9)]
    for smaller, larger in itertools.pairwise(parts):
        assert smaller < larger
    assert np.bincount(labels[list(parts[1])]).tolist() == [10, 6, 2, 1]


@pytest.mark.parametrize("fraction", [0.001, 0.2, 0.999])
def test_stratified_leaves_and_takes_at_least_one_of_each_class(fraction: float) -> None:
    labels = np.repeat([4, 0, 2], [90, 6, 1])
    chosen = stratified(0, KEYS, labels, fraction)
    assert sorted(chosen) == chosen.tolist()
    left = np.delete(labels, chosen)
    assert set(labels[chosen]) == {4, 0}, "a class with one sample keeps it for training"
    assert set(left) == {4, 0, 2}


def test_stratified_does_not_depend_on_the_order_of_the_listing() -> None:
    labels = np.arange(97) % 3
    chosen = {IDS[i] for i in stratified(1, KEYS, labels, 0.3)}
    turned = {IDS[::-1][i] for i in stratified(1, KEYS[::-1].copy(), labels[::-1], 0.3)}
    assert chosen == turned
    assert chosen != {IDS[i] for i in stratified(2, KEYS, labels, 0.3)}


def test_seeds_differ_with_every_part_and_its_place() -> None:
    seeds = {seed_of(*parts) for parts in [(0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0), (2**63 - 1, 0)]}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
