"""Reading a config: a YAML file, its base and overrides; every problem is told at once, with its place."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from orchestrator.config import FORMAT_VERSION, Config, ConfigError, Problem, redact, yaml_text
from orchestrator.schema import schema_keys
from trainables.recipe import Settings


@dataclass
class Source:
    """The values of a config before validation, and where each dotted key was set."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def report(self, problems: Sequence[Problem]) -> ConfigError:
        """One error for all problems, each with its place, in the order of the places."""
        order = {key: number for number, key in enumerate(self.places)}
        ordered = sorted(problems, key=lambda p: order.get(p.key, len(order)))
        lines = [f"{self.place(p.key)}{p.message}" for p in ordered]
        head = f"{len(lines)} problems:\n  " if len(lines) > 1 else ""
        return ConfigError(head + "\n  ".join(lines))

    def place(self, key: str) -> str:
        """Where a key, or the nearest group above it, was set."""
        while key and key not in self.places:
            key = key.rpartition(".")[0]
        where = self.places.get(key)
        return f"{where}: " if where else ""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and validate a YAML file with ``key=value`` overrides. Raises ConfigError that tells all problems."""
    source = read_source(path, overrides)
    config, problems = validate(source)
    if problems or config is None:
        raise source.report(problems)
    return config


def read_source(path: str | Path, overrides: Sequence[str] = ()) -> Source:
    """The values of the file, of its ``base`` below them and of the overrides above. Raises ConfigError."""
    path = Path(path)
    source = Source()
    values, places = _read_yaml(path, source.problems)
    base = values.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise ConfigError(f"{places['base']}: base = {base!r}: must be the path of a YAML file")
        _merge(source, *_read_yaml(path.parent / base, source.problems, asked_by=places["base"]))
        if "base" in source.values:
            raise ConfigError(f"{source.places['base']}: a base cannot have a base itself: one level only")
    _merge(source, values, places)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"{override!r} is not an override: write key=value, as in epochs=10")
        _merge(source, *_nested(key, _parse(text), f"command line: {override}"))
    return source


def validate(source: Source) -> tuple[Config | None, list[Problem]]:
    """The config, and all problems. With problems the config has defaults in place of what is wrong, where it can be.

    So checks that go beyond the schema can tell their problems in the same message.
    """
    try:
        return Config.model_validate(source.values), source.problems
    except ValidationError as error:
        wrong = explain(error)
        problems = source.problems + wrong
        rest = {k: v for k, v in source.values.items() if k not in {p.key.split(".")[0] for p in wrong}}
        try:
            return Config.model_validate(rest), problems
        except ValidationError:
            return None, problems


def explain(error: ValidationError) -> list[Problem]:
    """What a validation refused, a problem per key, in our words."""
    wrong: dict[str, list[str]] = {}
    for item in error.errors():
        key, message = _explain(item)
        wrong.setdefault(key, []).append(message)
    return [Problem(key, _either(messages)) for key, messages in wrong.items()]


def _read_yaml(
    path: Path, problems: list[Problem], asked_by: str | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    prefix = f"{asked_by}: " if asked_by else ""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"{prefix}cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{prefix}{path} is not a text file in UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{prefix}{path}{line}: invalid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{prefix}{path}: invalid YAML: {error}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{prefix}{path}: must hold keys and values, as in 'model: resnet18'")
    places: dict[str, str] = {}
    if isinstance(node, yaml.MappingNode):
        _find_places(node, str(path), "", places, problems)
    version = values.pop("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ConfigError(f"{path}: format_version {version} is newer than this version reads ({FORMAT_VERSION})")
    return values, places


def _find_places(
    node: yaml.MappingNode, path: str, prefix: str, places: dict[str, str], problems: list[Problem]
) -> None:
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        place = f"{path}:{key_node.start_mark.line + 1}"
        if key in places:
            problems.append(Problem(key, f"{key} is set twice (first at {places[key]})"))
        places[key] = place
        if isinstance(value_node, yaml.MappingNode):
            _find_places(value_node, path, f"{key}.", places, problems)


def _nested(key: str, value: Any, place: str) -> tuple[dict[str, Any], dict[str, str]]:
    parts = key.split(".")
    for part in reversed(parts):
        value = {part: value}
    return value, {key: place}


def _parse(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _merge(source: Source, values: dict[str, Any], places: dict[str, str]) -> None:
    """Lay values over those of the source; groups key by key."""

    def lay(below: dict[str, Any], above: dict[str, Any]) -> None:
        for key, value in above.items():
            if isinstance(value, dict) and isinstance(below.get(key), dict):
                lay(below[key], value)
            else:
                below[key] = value

    lay(source.values, values)
    source.places |= places


def _explain(error: Any) -> tuple[str, str]:
    """The dotted key and the message of one pydantic error."""
    model: type[Settings] = Config
    path: list[str] = []
    for part in error["loc"]:
        path.append(str(part))
        info = model.model_fields.get(str(part))
        if info is None or not (isinstance(info.annotation, type) and issubclass(info.annotation, Settings)):
            break
        model = info.annotation
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        near = _nearest(path[-1], model, ".".join(path[:-1]))
        return key, f"unknown key {key!r}: {near}"
    if error["type"] == "missing":
        return key, f"{key} is missing: {model.model_fields[path[-1]].description}"
    rule = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    value = redact(yaml_text(error["input"]))
    near = _near_choice(error) if error["type"] == "literal_error" else ""
    return key, f"{key} = {value}: {rule}{near}"


def _either(messages: list[str]) -> str:
    """One message for the alternatives of a key that may have several types."""
    first, *others = dict.fromkeys(messages)
    return first + "".join(f" or {other.partition('must be ')[2] or other}" for other in others)


def _nearest(name: str, model: type[Settings], group: str) -> str:
    keys = [k.name for k in schema_keys()]
    here = [f"{group}.{k}" if group else k for k in model.model_fields]
    full = f"{group}.{name}" if group else name
    near = difflib.get_close_matches(full, [*here, *keys], n=1, cutoff=0.6)
    near = near or [k for k in keys if k.rpartition(".")[2] == name]
    return f"did you mean {near[0]!r}?" if near else "orchestrator train --help lists the keys"


def _near_choice(error: Any) -> str:
    choices = [c.strip(" '") for c in error["ctx"]["expected"].replace(" or ", ", ").split(",")]
    near = difflib.get_close_matches(str(error["input"]), choices, n=1, cutoff=0.5)
    lowered = [c for c in choices if c.lower() == str(error["input"]).lower()]
    return f"; did you mean {(lowered or near)[0]!r}?" if lowered or near else ""
