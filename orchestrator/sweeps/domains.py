"""Domains of a search space: what one key of the config can be, as values to list or a range to draw from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from statistics import NormalDist
from typing import Any, ClassVar, Literal

from orchestrator.sweeps.records import is_number

Scale = Literal["linear", "log", "category"]
REACH = 3
"""Standard deviations that a normal domain reaches to either side."""


class Finite(ABC):
    """A domain whose values can be counted."""

    scale: ClassVar[Scale]

    @property
    @abstractmethod
    def count(self) -> int:
        """How many values it has."""

    @abstractmethod
    def nth(self, position: int) -> Any:
        """The value at a position, from 0."""

    @abstractmethod
    def index(self, value: Any) -> int | None:
        """The position of a value; None where it is not in the domain."""

    @abstractmethod
    def ends(self) -> list[Any]:
        """The values to validate before anything starts."""

    def at(self, u: float) -> Any:
        """The value at probability `u` in [0, 1]; all values are equally likely."""
        return self.nth(min(int(u * self.count), self.count - 1))

    def holds(self, value: Any) -> bool:
        return self.index(value) is not None

    def values(self) -> Iterator[Any]:
        return (self.nth(position) for position in range(self.count))


@dataclass(frozen=True)
class Choice(Finite):
    """One of some listed values: numbers, texts, booleans, null, or lists of them."""

    options: tuple[Any, ...]
    scale: ClassVar[Scale] = "category"

    @property
    def count(self) -> int:
        return len(self.options)

    def nth(self, position: int) -> Any:
        return self.options[position]

    def index(self, value: Any) -> int | None:
        return next((i for i, option in enumerate(self.options) if same(option, value)), None)

    def ends(self) -> list[Any]:
        return list(self.options)


@dataclass(frozen=True)
class Grid(Choice):
    """Listed values that a grid search walks; other searchers take it as a choice."""


@dataclass(frozen=True)
class Stepped(Finite):
    """low, low + step, low + 2 step, ... up to high: a uniform domain with a step."""

    low: float
    high: float
    step: float
    scale: ClassVar[Scale] = "linear"

    @property
    def count(self) -> int:
        return int((_exact(self.high) - _exact(self.low)) // _exact(self.step)) + 1

    def nth(self, position: int) -> Any:
        return float(_exact(self.low) + position * _exact(self.step))

    def index(self, value: Any) -> int | None:
        if not is_number(value):
            return None
        position = round((_exact(value) - _exact(self.low)) / _exact(self.step))
        if not 0 <= position < self.count:
            return None
        return position if _close(self.nth(position), value, self.step) else None

    def ends(self) -> list[Any]:
        return [self.nth(0), self.nth(self.count - 1)]


@dataclass(frozen=True)
class Integer(Stepped):
    """A whole number from low to high, both included."""

    low: int
    high: int
    step: int = 1

    def nth(self, position: int) -> int:
        return self.low + position * self.step


class Range(ABC):
    """A domain of more numbers than one can list; `step` rounds them to its multiples."""

    scale: ClassVar[Scale]
    step: float | None = None

    @abstractmethod
    def ends(self) -> list[float]:
        """The lowest and the highest number."""

    @abstractmethod
    def inverse(self, u: float) -> float:
        """The inverse of `cdf`, before rounding."""

    @abstractmethod
    def cdf(self, value: float) -> float:
        """The probability of a number up to `value`."""

    def at(self, u: float) -> float:
        """The value at probability `u` in [0, 1]."""
        return self.rounded(self.inverse(u))

    def rounded(self, value: float) -> float:
        """The nearest multiple of step, within the range."""
        if self.step:
            step = _exact(self.step)
            value = float((_exact(value) / step).to_integral_value() * step)
        low, high = self.ends()
        return min(max(value, low), high)

    def holds(self, value: Any) -> bool:
        return is_number(value) and _close(self.rounded(value), value, self.step or 0)


@dataclass(frozen=True)
class Uniform(Range):
    """Any number from low to high."""

    low: float
    high: float
    scale: ClassVar[Scale] = "linear"

    def ends(self) -> list[float]:
        return [self.low, self.high]

    def inverse(self, u: float) -> float:
        return self.low + u * (self.high - self.low)

    def cdf(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class LogUniform(Uniform):
    """A number from low to high, each decade equally likely."""

    step: float | None = None
    scale: ClassVar[Scale] = "log"

    def inverse(self, u: float) -> float:
        return math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))

    def cdf(self, value: float) -> float:
        return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))


@dataclass(frozen=True)
class Normal(Range):
    """A normally distributed number, clipped to REACH standard deviations from the mean."""

    mean: float
    sd: float
    step: float | None = None
    scale: ClassVar[Scale] = "linear"

    def ends(self) -> list[float]:
        reach = REACH * _exact(self.sd)
        return [float(_exact(self.mean) - reach), float(_exact(self.mean) + reach)]

    def inverse(self, u: float) -> float:
        return NormalDist(self.mean, self.sd).inv_cdf(min(max(u, 1e-12), 1 - 1e-12))

    def cdf(self, value: float) -> float:
        return NormalDist(self.mean, self.sd).cdf(value)


Leaf = Choice | Stepped | Uniform | Normal


@dataclass(frozen=True)
class Conditional:
    """A domain that depends on the value of another key. It has no `at`: `given` finds the domain that does."""

    by: str
    cases: tuple[tuple[Any, Leaf], ...]
    otherwise: Leaf | None = None

    @property
    def leaves(self) -> list[Leaf]:
        return [leaf for _, leaf in self.cases] + ([self.otherwise] if self.otherwise else [])

    @property
    def scale(self) -> Scale:
        """The scale of all cases; where they differ category if any is, else linear."""
        scales = {leaf.scale for leaf in self.leaves}
        if len(scales) == 1:
            return scales.pop()
        return "category" if "category" in scales else "linear"

    def case(self, value: Any) -> str:
        """The name of the case of a value of `by`, as "optimizer=SGD" or "optimizer=else"."""
        listed = any(same(value, case) for case, _ in self.cases)
        return f"{self.by}={value if listed else 'else'}"

    def given(self, value: Any) -> Leaf | None:
        """The domain for a value of `by`; None where there is no case for it."""
        return next((leaf for case, leaf in self.cases if same(value, case)), self.otherwise)

    def ends(self) -> list[Any]:
        return [end for leaf in self.leaves for end in leaf.ends()]

    def holds(self, value: Any) -> bool:
        return any(leaf.holds(value) for leaf in self.leaves)


Domain = Leaf | Conditional


def same(one: Any, other: Any) -> bool:
    """Whether two values of a config are the same: 1 is 1.0, but true is not 1."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _exact(number: float) -> Decimal:
    """The number as it is written in decimals, without the noise of binary fractions."""
    return Decimal(str(number))


def _close(one: float, other: float, step: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-9 * step)
