"""Images that stand in a data set more than once, from a few hundred bytes per image.

Copies have the same bytes (a 128-bit hash). Look-alikes are copies that were saved again, or resized: their 16 x 16
grey thumbnails differ by less than JPEG changes them. They are found as neighbours in several sorted orders of a hash
(which of two neighbouring pixels is brighter), so a million images take seconds, not a million squared comparisons.
Mirrored, cropped or recoloured copies are not found.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SIDE = 16
"""Of the thumbnails that are compared."""
MEAN_DIFFERENCE, LARGEST_DIFFERENCE = 1.5, 10
"""Of two thumbnails that look the same, in grey levels of 255. JPEG at quality 50 stays below, other scenes do not."""
CHUNK = 50_000

Array = np.ndarray[Any, np.dtype[Any]]
Groups = list[list[int]]
"""Positions of samples that are the same picture, each group and the list in ascending order."""


def copies(digests: Array, there: Array) -> Groups:
    """The groups with the same bytes. digests: (n, 16) uint8; there: (n,) bool, which of them to compare."""
    positions = np.flatnonzero(there)
    if not len(positions):
        return []
    keys = np.ascontiguousarray(digests[positions]).view("V16").ravel()
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    return _groups(positions[order[:-1][same]], positions[order[1:][same]])


def lookalikes(looks: Array, there: Array) -> Groups:
    """The groups whose thumbnails look the same. looks: (n, SIDE, SIDE) uint8. Equal bytes are among them."""
    positions = np.flatnonzero(there)
    bits = _bits(looks, positions)
    words = bits.view(">u4")
    brightness = looks[positions].mean((1, 2), dtype=np.float32)
    pairs = []
    for word in range(words.shape[1]):
        after = (word + 1) % words.shape[1]
        order = np.lexsort((brightness, words[:, after], words[:, word]))
        first, second = positions[order[:-1]], positions[order[1:]]
        alike = _alike(looks, first, second)
        pairs.append((first[alike], second[alike]))
    return _groups(np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs]))


def _bits(looks: Array, positions: Array) -> Array:
    """(n, 32) uint8: 240 comparisons of neighbours in a row, and padding."""
    bits = np.zeros((len(positions), 32), np.uint8)
    for start in range(0, len(positions), CHUNK):
        part = looks[positions[start : start + CHUNK]]
        brighter = (part[:, :, 1:] > part[:, :, :-1]).reshape(len(part), -1)
        bits[start : start + CHUNK, : SIDE * (SIDE - 1) // 8] = np.packbits(brighter, axis=1)
    return bits


def _alike(looks: Array, first: Array, second: Array) -> Array:
    alike = np.zeros(len(first), bool)
    for start in range(0, len(first), CHUNK):
        part = slice(start, start + CHUNK)
        difference = np.abs(looks[first[part]].astype(np.int16) - looks[second[part]])
        alike[part] = (difference.mean((1, 2)) <= MEAN_DIFFERENCE) & (difference.max((1, 2)) <= LARGEST_DIFFERENCE)
    return alike


def _groups(first: Array, second: Array) -> Groups:
    """Connected pairs as groups (union-find)."""
    parent: dict[int, int] = {}

    def root(node: int) -> int:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    groups: dict[int, list[int]] = {}
    for node in sorted(parent):
        groups.setdefault(root(node), []).append(node)
    return sorted(groups.values())
