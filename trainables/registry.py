"""Visible tables: a name becomes its builder, an unknown name answers with the choices and the nearest one."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """The end of an error message: the nearest choices, else all of them (at most twelve)."""
    names = sorted(choices)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"choose one of: {shown}"


def load(reference: str) -> Any:
    """The object that ``package.module:name`` refers to. Raises ValueError where there is none."""
    module, _, attribute = reference.partition(":")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and not f"{module}.".startswith(f"{error.name}."):
            raise  # the user's module exists and misses one of its own imports
        raise ValueError(f"{reference!r}: there is no module {module!r} on the Python path") from error
    if not hasattr(found, attribute):
        raise ValueError(f"{reference!r}: module {module!r} has no {attribute!r}")
    return getattr(found, attribute)


def lookup(table: Mapping[str, Any], name: str, kind: str) -> Any:
    """The builder that `name` stands for in `table`, or the object that ``package.module:name`` refers to.

    Entries of a table may themselves be such references, so that a table costs no heavy import.
    """
    entry = table.get(name, name if ":" in name else None)
    if entry is None:
        raise ValueError(f"unknown {kind} {name!r}: {did_you_mean(name, table)}")
    return load(entry) if isinstance(entry, str) else entry
