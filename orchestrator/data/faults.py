"""What is wrong with labels, collected so that one message tells all of it."""

from __future__ import annotations

import json
from typing import Any

EXAMPLES = 3
"""Places that a message names for each broken rule."""


class Wrong(ValueError):
    """What a record has, as `bbox = [1, 2]`, and the rule that it breaks, as `is not four numbers`."""

    def __init__(self, what: str, rule: str) -> None:
        super().__init__(f"{what} {rule}")
        self.what, self.rule = what, rule


class Faults:
    """Broken rules, with how often and where at first."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def add(self, what: str, rule: str) -> None:
        self.counts[rule] = self.counts.get(rule, 0) + 1
        if self.counts[rule] <= EXAMPLES:
            self.examples.setdefault(rule, []).append(what)

    def refuse(self) -> None:
        """Raises ValueError if there are any."""
        if self.counts:
            raise ValueError(f"{self.place}: {'; '.join(self._sentence(rule) for rule in self.counts)}")

    def _sentence(self, rule: str) -> str:
        first, *others = self.examples[rule]
        if (more := self.counts[rule] - EXAMPLES) > 0:
            others.append(f"{more} more")
        return f"{first} {rule}" + (f" (also {', '.join(others)})" if others else "")


def short(value: Any) -> str:
    """A value as JSON, cut to what fits into a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
