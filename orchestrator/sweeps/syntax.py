"""How domains are written in YAML: [a, b], {uniform: [0, 1], step: 0.05}, {by: KEY, cases: ..., else: ...}."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from orchestrator.config import yaml_text
from orchestrator.sweeps.domains import (
    REACH,
    Choice,
    Conditional,
    Domain,
    Grid,
    Integer,
    Leaf,
    LogUniform,
    Normal,
    Stepped,
    Uniform,
    same,
)
from orchestrator.sweeps.records import is_number
from trainables.recipe import Float
from trainables.registry import did_you_mean

Options = Mapping[str, Any]
_FLOAT: TypeAdapter[float] = TypeAdapter(Float)


@dataclass(frozen=True)
class Entry:
    build: Callable[[Any, Options], Domain]
    """From what the name stands before and the options beside it. Raises ValueError."""
    options: tuple[str, ...] = ()


def parse_domain(value: Any) -> Domain:
    """The domain that a YAML value describes. Raises ValueError that says what is wrong and what to write."""
    if isinstance(value, list):
        value = {"choice": value}
    if not isinstance(value, Mapping):
        kinds = ", ".join(name for name in DOMAINS if name != "by")
        raise ValueError(f"{yaml_text(value)} is not a domain: list the values, [{yaml_text(value)}], or use {kinds}")
    names = [name for name in DOMAINS if name in value]
    if not names:
        known = {option for entry in DOMAINS.values() for option in entry.options}
        unknown = next((str(key) for key in value if key not in known), "")
        raise ValueError(f"unknown domain {unknown!r}: {did_you_mean(unknown, DOMAINS)}")
    if len(names) > 1:
        raise ValueError(f"has {' and '.join(names)}: keep one of them")
    entry = DOMAINS[names[0]]
    options = {key: setting for key, setting in value.items() if key != names[0]}
    for key in options:
        if key not in entry.options:
            near = did_you_mean(str(key), entry.options) if entry.options else "leave it out"
            raise ValueError(f"{names[0]} takes no {key!r}: {near}")
    return entry.build(value[names[0]], options)


def _listed(values: Any, kind: type[Choice]) -> Choice:
    name = kind.__name__.lower()
    if not isinstance(values, list) or not values:
        raise ValueError(f"{name} needs a list of one value or more, as in [0.8, 0.9]")
    options = [_plain(value) for value in values]
    for position, option in enumerate(options):
        if any(same(option, other) for other in options[:position]):
            raise ValueError(f"{name} has {yaml_text(option)} twice: leave one out")
    return kind(tuple(options))


def _plain(value: Any) -> Any:
    """A value of a config; a number that YAML 1.1 reads as text is one. Raises ValueError for anything else."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, str):
        number = _number(value)
        return value if number is None else number
    if value is None or isinstance(value, bool) or is_number(value):
        return value
    raise ValueError(f"{value} cannot be listed: only numbers, texts, true, false, null and lists of these can")


def _number(value: Any) -> float | None:
    try:
        return value if isinstance(value, int) and not isinstance(value, bool) else _FLOAT.validate_python(value)
    except ValidationError:
        return None


def _two(values: Any, form: str) -> tuple[float, float]:
    """Two numbers, or ValueError; `form` shows how they are written."""
    first, second = map(_number, values) if isinstance(values, list) and len(values) == 2 else (None, None)
    if first is None or second is None:
        raise ValueError(f"{yaml_text(values)} are not two finite numbers: write {form}")
    return first, second


def _ends(values: Any, form: str) -> tuple[float, float]:
    low, high = _two(values, form)
    if low > high:
        raise ValueError(f"the range {low} to {high} is reversed: write [{high}, {low}]")
    if low == high:
        raise ValueError(f"the range {low} to {high} is empty: to fix the value, set the key itself")
    return low, high


def _step(options: Options, width: float) -> float | None:
    """The option `step`, above zero and at most the width of the range; None where it is not given."""
    if options.get("step") is None:
        return None
    step = _number(options["step"])
    if step is None or step <= 0:
        raise ValueError(f"step = {yaml_text(options['step'])}: must be a number above 0")
    if step > width:
        raise ValueError(f"step = {step}: must be at most the width of the range, {width:g}")
    return step


def _uniform(values: Any, options: Options) -> Domain:
    low, high = _ends(values, "{uniform: [LOW, HIGH]}")
    step = _step(options, high - low)
    return Stepped(low, high, step) if step else Uniform(float(low), float(high))


def _loguniform(values: Any, options: Options) -> Domain:
    low, high = _ends(values, "{loguniform: [LOW, HIGH]}")
    if low <= 0:
        raise ValueError(f"loguniform cannot start at {low}: its low end must be above 0, or use uniform")
    return LogUniform(float(low), float(high), _step(options, high - low))


def _integer(values: Any, options: Options) -> Domain:
    low, high = _ends(values, "{int: [LOW, HIGH]}")
    step = _step(options, high - low) or 1
    for number in (low, high, step):
        if number != int(number):
            raise ValueError(f"{number} is not a whole number: use uniform for fractions")
    return Integer(int(low), int(high), int(step))


def _normal(values: Any, options: Options) -> Domain:
    mean, sd = _two(values, "{normal: [MEAN, STANDARD DEVIATION]}")
    if sd <= 0:
        raise ValueError(f"standard deviation = {sd}: must be above 0")
    return Normal(float(mean), float(sd), _step(options, 2 * REACH * sd))


def _conditional(by: Any, options: Options) -> Domain:
    cases = options.get("cases")
    if not isinstance(by, str) or not isinstance(cases, Mapping) or not cases:
        raise ValueError("a condition is written {by: KEY, cases: {VALUE: DOMAIN, ...}, else: DOMAIN}")
    leaves = [(_plain(value), _leaf(f"case {yaml_text(value)}", domain)) for value, domain in cases.items()]
    return Conditional(by, tuple(leaves), _leaf("else", options["else"]) if "else" in options else None)


def _leaf(where: str, value: Any) -> Leaf:
    try:
        domain = parse_domain(value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if isinstance(domain, Conditional):
        raise ValueError(f"{where}: a case cannot have a condition of its own: give it a range or values")
    return domain


DOMAINS: dict[str, Entry] = {
    "choice": Entry(lambda values, _: _listed(values, Choice)),
    "grid": Entry(lambda values, _: _listed(values, Grid)),
    "uniform": Entry(_uniform, ("step",)),
    "loguniform": Entry(_loguniform, ("step",)),
    "int": Entry(_integer, ("step",)),
    "normal": Entry(_normal, ("step",)),
    "by": Entry(_conditional, ("cases", "else")),
}
