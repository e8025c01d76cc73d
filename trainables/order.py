"""The order of the data: pure functions of (seed, epoch, sample id).

Every random number that touches a sample is a hash of the seed, the epoch, the stream and the sample's key. So the
samples and pixels of a global step do not depend on the number of workers, on the cache tier or on restarts.

The hash is the finalizer of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np

FORMAT_VERSION = 1
"""Raised when the same (seed, epoch, id) would give another order or other draws."""

Keys = np.ndarray[Any, np.dtype[np.uint64]]
Positions = np.ndarray[Any, np.dtype[np.int64]]
Draws = np.ndarray[Any, np.dtype[np.float64]]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF
STRIDE = 32
"""What the sizes of multi-scale are multiples of: how far the models halve their input."""

_ORDER, _SELECT, _DRAW, _SIZE = 1, 2, 3, 2**20  # streams; the draws of a sample take _DRAW, _DRAW + 1, ...


def sample_keys(ids: Iterable[str]) -> Keys:
    """A 64-bit key per sample id, (n,) uint64."""
    digests = b"".join(blake2b(name.encode(), digest_size=8).digest() for name in ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def order(seed: int, epoch: int, keys: Keys) -> Positions:
    """The positions of all samples in the sequence of `epoch`, (n,) int64: a permutation."""
    return np.argsort(_hash(seed, epoch, _ORDER, keys), kind="stable")


def draws(seed: int, epoch: int, keys: Keys, count: int) -> Draws:
    """`count` independent uniform numbers in [0, 1) per sample, (n, count)."""
    columns = [_hash(seed, epoch, _DRAW + i, keys) >> np.uint64(11) for i in range(count)]
    return np.stack(columns, axis=1) * 2.0**-53


def share(size: int, rank: int, world_size: int) -> slice:
    """The contiguous part of a global batch of `size` samples that `rank` takes; the sizes differ by one at most."""
    return slice(size * rank // world_size, size * (rank + 1) // world_size)


def stratified(seed: int, keys: Keys, labels: Positions, fraction: float, leave: int = 1) -> Positions:
    """Positions of about `fraction` of each class, (m,) int64 in ascending order.

    A sample is chosen by the rank of its own hash within its class, so a smaller fraction lies within a larger one.
    At least one of each class is chosen, but at least `leave` are left, which comes first.
    """
    ranking = np.argsort(_hash(seed, 0, _SELECT, keys), kind="stable")
    chosen: list[Positions] = []
    for label in np.unique(labels):
        members = ranking[labels[ranking] == label]
        count = min(max(round(fraction * len(members)), 1), len(members) - leave)
        chosen.append(members[:count])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def batch_size(seed: int, epoch: int, step: int, size: int, spread: float) -> int:
    """Height and width of a global batch, the same on all ranks: one of `batch_sizes`, all equally likely."""
    if not spread:
        return size
    sizes = batch_sizes(size, spread)
    return sizes[seed_of(seed, epoch, step, _SIZE) % len(sizes)]


def batch_sizes(size: int, spread: float) -> range:
    """The multiples of STRIDE in size x (1 - spread) .. size x (1 + spread); only `size` where there are none."""
    first, last = math.ceil(size * (1 - spread) / STRIDE), math.floor(size * (1 + spread) / STRIDE)
    if not spread or last < max(first, 1):
        return range(size, size + 1)
    return range(STRIDE * max(first, 1), STRIDE * last + 1, STRIDE)


def seed_of(*parts: int) -> int:
    """One 63-bit seed from several integers, for torch's generators."""
    value = 0
    for part in parts:
        value = _mix_int((value ^ (part & _MASK)) + _GOLDEN & _MASK)
    return value >> 1


def _hash(seed: int, epoch: int, stream: int, keys: Keys) -> Keys:
    salt = np.uint64(_mix_int((seed_of(seed, epoch, stream) + _GOLDEN) & _MASK))
    return _mix(_mix(keys ^ salt) + salt)


def _mix(x: Keys) -> Keys:
    """SplitMix64's finalizer over an array; uint64 arithmetic wraps."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _mix_int(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
