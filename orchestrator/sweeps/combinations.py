"""Domains of several keys together: drawn at random, or combination by combination."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.sweeps.domains import Conditional, Domain, Finite, Leaf, Scale, same
from orchestrator.sweeps.records import Params


@dataclass(frozen=True)
class Space:
    """Domains by dotted key, the key of a condition before those that depend on it."""

    domains: dict[str, Domain]

    def leaf(self, key: str, params: Params) -> Leaf | None:
        """The domain of a key, given the values of the keys before it; None where its condition has no case."""
        domain = self.domains[key]
        return domain.given(params[domain.by]) if isinstance(domain, Conditional) else domain

    def sample(self, draw: Callable[[str], float]) -> Params:
        """A configuration; `draw` gives a number in [0, 1) for each key."""
        params: Params = {}
        for key in self.domains:
            params[key] = self._leaf(key, params).at(draw(key))
        return params

    def grid(self) -> Iterator[Params]:
        """All combinations, each once, the first key slowest. Needs `is_finite`."""

        def walk(keys: list[str], params: Params) -> Iterator[Params]:
            if not keys:
                yield params
                return
            leaf = self._leaf(keys[0], params)
            assert isinstance(leaf, Finite)
            for value in leaf.values():
                yield from walk(keys[1:], {**params, keys[0]: value})

        return walk(list(self.domains), {})

    @property
    def infinite(self) -> list[str]:
        """The keys with a range, whose values cannot be listed."""
        return [key for key in self.domains if not all(isinstance(leaf, Finite) for leaf in self._leaves(key))]

    @property
    def is_finite(self) -> bool:
        return not self.infinite

    @property
    def size(self) -> int | None:
        """How many combinations `grid` gives; None where the space is not finite."""
        conditions = {domain.by for domain in self.domains.values() if isinstance(domain, Conditional)}

        def count(keys: list[str], params: Params) -> int:
            if not keys:
                return 1
            key, *rest = keys
            leaf = self._leaf(key, params)
            assert isinstance(leaf, Finite)
            if key not in conditions:
                return leaf.count * count(rest, params)
            return sum(count(rest, {**params, key: value}) for value in leaf.values())

        return count(list(self.domains), {}) if self.is_finite else None

    @property
    def scales(self) -> dict[str, Scale]:
        """The axis that suits each key."""
        return {key: domain.scale for key, domain in self.domains.items()}

    def holds(self, params: Params) -> bool:
        """Whether all keys of the space are there, each with a value of its domain; other keys may be there too."""
        if not self.domains.keys() <= params.keys():
            return False
        leaves = {key: self.leaf(key, params) for key in self.domains}
        return all(leaf is not None and leaf.holds(params[key]) for key, leaf in leaves.items())

    def variants(self, key: str) -> list[Any]:
        """The values that a finite domain can take, over all its cases."""
        found: list[Any] = []
        for leaf in self._leaves(key):
            assert isinstance(leaf, Finite), f"{key} has a range: its values cannot be listed"
            found += [value for value in leaf.values() if not any(same(value, other) for other in found)]
        return found

    def _leaf(self, key: str, params: Params) -> Leaf:
        leaf = self.leaf(key, params)
        assert leaf is not None, f"{key} has no case for {params}"
        return leaf

    def _leaves(self, key: str) -> list[Leaf]:
        return [leaf for _, leaf in cases(key, self.domains) if leaf is not None]


def cases(key: str, domains: Mapping[str, Domain]) -> Iterator[tuple[Params, Leaf | None]]:
    """The domains that a key can have, each with the values that its conditions have then; None: there is no case."""
    domain = domains[key]
    if not isinstance(domain, Conditional):
        yield {}, domain
        return
    for settings, leaf in cases(domain.by, domains):
        for value in leaf.values() if isinstance(leaf, Finite) else ():
            yield {**settings, domain.by: value}, domain.given(value)
