"""Which tensors of a file of weights are which of a model's, whatever stands before their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.freeze import HEADS

CONTAINERS = {"module", "_orig_mod", "model", "models", "net", "network", "base", "base_model", "ema_model", "trunk"}
CONTAINERS |= {"backbone", "body", "encoder", "features", "student", "teacher"}
"""Names that wrap a whole model or its body, and so differ between a file and a model that are otherwise the same."""
COUNTER = "num_batches_tracked"
"""Of batch norms. Old files and frozen norms lack it, and nothing depends on it: it is neither missing nor unused."""
LEAST = 0.1
"""Part of the file or of the model, whichever is smaller, that must fit: less is another architecture."""
FOREIGN = 0.03
"""Part of the shared names that may have another shape for other reasons than the number of classes."""
RUN = 4
"""Least tensors in a row for which the order of a model tells which is which."""


@dataclass(frozen=True)
class Loaded:
    """What became of a file of weights: names of the model's tensors, and of the file's."""

    source: str
    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    """In both, with another shape (as a head for another number of classes): left as initialised."""
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    resampled: list[str] = field(default_factory=list)
    """Tables of positions that were loaded for images of another size."""
    prefix: str = ""
    """Put before the file's names: `backbone.body.` for a classifier's in a detector."""

    def __str__(self) -> str:
        place = f" into {self.prefix}*" if self.prefix else ""
        parts = [f"{len(self.loaded)} tensors loaded from {self.source}{place}"]
        for label in ("resampled", "resized", "missing", "unused"):
            names: list[str] = getattr(self, label)
            if names:
                shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
                parts.append(f"{len(names)} {label} ({shown})")
        return "; ".join(parts)


def match(model: nn.Module, weights: Mapping[str, Tensor], source: str, name: str) -> tuple[Loaded, dict[str, Tensor]]:
    """Find each of the model's tensors in a state dict. The model may be on the meta device.

    Of all ways to drop a prefix of the file's names (`module.`, `backbone.`) and to put one of the model's before them
    (`backbone.body.` for a classifier in a detector), that is taken by which most tensors fit in name and shape.

    Returns the report, and by the model's names the tensors that fit. Raises ValueError where nothing, or next to
    nothing, fits: then it is another architecture.
    """
    own: dict[str, Tensor] = model.state_dict(keep_vars=True)
    drop, add = _renaming(own, weights)
    renamed = {_rename(key, drop, add): key for key in weights}
    fits = {key: renamed[key] for key in own if key in renamed and own[key].shape == weights[renamed[key]].shape}
    if add:
        fits |= _in_order(own, weights, fits, add)
    used = set(fits.values())
    resized = [key for key in own if key in renamed and key not in fits and renamed[key] not in used]
    used |= {renamed[key] for key in resized}
    tables = {key: _resampled(key, own[key], weights[renamed[key]]) for key in resized}
    resampled = {key: table for key, table in tables.items() if table is not None}
    resized = [key for key in resized if key not in resampled]
    filled = {id(own[key]) for key in (*fits, *resampled)}  # tied tensors are stored once
    loaded = Loaded(
        source,
        loaded=list(fits),
        resampled=list(resampled),
        prefix=add,
        resized=resized,
        missing=[key for key in own if key not in resized and id(own[key]) not in filled and not key.endswith(COUNTER)],
        unused=[key for key in weights if key not in used and not key.endswith(COUNTER)],
    )
    _refuse_another(own, weights, {key: renamed[key] for key in resized}, loaded, name)
    return loaded, {key: weights[found] for key, found in fits.items()} | resampled


def _renaming(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> tuple[str, str]:
    """The prefix of the file's names to drop, and the one of the model's to add. Ties go to the least renaming."""
    drops, adds = _prefixes(weights), _prefixes(own, numbered=True)
    pairs = sorted(
        ((drop, add) for drop in drops for add in adds if drop != add or not drop),
        key=lambda pair: (len(pair[0]) + len(pair[1]), pair),
    )

    def fitting(pair: tuple[str, str]) -> int:
        names = ((_rename(key, *pair), tensor) for key, tensor in weights.items())
        return sum(key in own and own[key].shape == tensor.shape for key, tensor in names)

    return max(pairs, key=fitting)


def _prefixes(names: Mapping[str, Tensor], numbered: bool = False) -> set[str]:
    """What may stand before the names of a model in these: containers, and what stands before most of them.

    numbered: also a number after a container, as where a backbone was cut into numbered parts.
    """
    counts: Counter[str] = Counter()
    known = {""}
    for name in names:
        *parents, _ = name.split(".")
        inside = True
        for depth, part in enumerate(parents[:4], 1):
            prefix = ".".join(parents[:depth]) + "."
            counts[prefix] += 1
            if inside and (part in CONTAINERS or (numbered and part.isdecimal() and depth > 1)):
                known.add(prefix)
            inside = inside and part in CONTAINERS
    return known | {prefix for prefix, count in counts.items() if count > len(names) / 2}


def _rename(key: str, drop: str, add: str) -> str:
    """Names without the prefix to drop keep theirs: a head beside a `backbone.`."""
    return add + key[len(drop) :] if key.startswith(drop) else key


def _in_order(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], fits: Mapping[str, str], add: str
) -> dict[str, str]:
    """The rest of a backbone whose layers were put into other groups: the same kinds and shapes, in the same order."""
    top = add.split(".")[0] + "."
    used = set(fits.values())
    here = [key for key in own if key.startswith(top) and key not in fits]
    there = [key for key in weights if key not in used]

    def kinds(names: list[str], tensors: Mapping[str, Tensor]) -> list[tuple[str, tuple[int, ...]]]:
        return [(name.rsplit(".", 1)[-1], tuple(tensors[name].shape)) for name in names]

    blocks = SequenceMatcher(None, kinds(here, own), kinds(there, weights), autojunk=False).get_matching_blocks()
    return {here[b.a + i]: there[b.b + i] for b in blocks if b.size >= RUN for i in range(b.size)}


def _resampled(name: str, own: Tensor, stored: Tensor) -> Tensor | None:
    """A vision transformer's table of positions (1, tokens, width) on the grid of another size of image.

    Tokens that stand for no place (of the class) come first, and are kept. Bicubic, as Dosovitskiy et al. (2020) and
    their successors do it. None: it is no such table.
    """
    if not name.split(".")[-1].startswith("pos_embed") or own.ndim != 3 or stored.ndim != 3:
        return None
    if (own.shape[0], stored.shape[0], own.shape[2]) != (1, 1, stored.shape[2]):
        return None
    sides = [isqrt(count) for count in (stored.shape[1], own.shape[1])]
    extra = stored.shape[1] - sides[0] ** 2
    if extra != own.shape[1] - sides[1] ** 2:
        return None
    grid = stored[:, extra:].reshape(1, sides[0], sides[0], -1).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=(sides[1], sides[1]), mode="bicubic", align_corners=False, antialias=True)
    return torch.cat([stored[:, :extra], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _refuse_another(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], resized: Mapping[str, str], loaded: Loaded, name: str
) -> None:
    """Raises ValueError where the file belongs to another architecture."""
    advice = f"name a file of weights of {name}, or set pretrained to true or false"
    matched = _elements(own, loaded.loaded, own)
    if not matched:
        but = " but its head" if any(_is_head(key) for key in loaded.loaded) else ""
        raise ValueError(
            f"pretrained: no tensor of {loaded.source}{but} fits {name} (the file has {_some(weights)}; "
            f"the model has {_some(own)}): {advice}"
        )
    heads = set(resized.values())
    smaller = min(
        _elements(own, [key for key in own if key not in resized], own),
        _elements(weights, [key for key in weights if key not in heads], own),
    )
    if matched < LEAST * smaller:
        raise ValueError(
            f"pretrained: {loaded.source} is of another architecture than {name}: only {len(loaded.loaded)} tensors "
            f"with {matched / smaller:.1%} of the values fit (the file has {_some(weights)}; the model has "
            f"{_some(own)}): {advice}"
        )
    foreign = [
        key
        for key, found in resized.items()
        if own[key].shape[1:] != weights[found].shape[1:] or key.endswith("running_mean")
    ]
    layers = sum(own[key].ndim > 1 for key in loaded.loaded)
    most = max(3, FOREIGN * (len(loaded.loaded) + len(resized)))
    if len(foreign) > min(most, max(1, layers / 4)):
        shown = "; ".join(
            f"{key} is {tuple(weights[resized[key]].shape)}, not {tuple(own[key].shape)}" for key in foreign[:3]
        )
        raise ValueError(
            f"pretrained: {loaded.source} is of another architecture than {name}: {len(foreign)} tensors have the same "
            f"name but another shape ({shown}): {advice}"
        )


def _elements(tensors: Mapping[str, Tensor], names: Sequence[str], own: Mapping[str, Tensor]) -> int:
    """Values outside the head, which is the same in many architectures; all values of a model that is nothing else."""
    only_head = all(_is_head(name) for name in own)
    counted = (name for name in names if only_head or not _is_head(name))
    return sum(tensors[name].numel() for name in counted if tensors[name].is_floating_point())


def _is_head(name: str) -> bool:
    return name.split(".")[0] in HEADS


def _some(tensors: Mapping[str, Tensor]) -> str:
    names = [name for name in tensors if not name.endswith(COUNTER)]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "nothing"
