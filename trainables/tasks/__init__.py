"""The tasks: what differs between kinds of training. One file per task, one line in the table per file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trainables.registry import lookup

if TYPE_CHECKING:
    from trainables.contracts import Task
    from trainables.recipe import Recipe

TASKS: dict[str, str] = {
    "classify": "trainables.tasks.classify:Classify",
    "detect": "trainables.tasks.detect:Detect",
    "segment": "trainables.tasks.segment:Segment",
}


def build_task(recipe: Recipe) -> Task:
    """The task that ``recipe.task`` names. Raises ValueError for a name that is not in the table."""
    builder: Callable[[Recipe], Task] = lookup(TASKS, recipe.task, "task")
    return builder(recipe)
