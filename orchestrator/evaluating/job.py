"""What each process does: its share of the samples through the model, metrics over all of them."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.config import ConfigError
from orchestrator.data.cache import Cache
from orchestrator.data.wrapped import RelabelledData, WatchedData
from orchestrator.trained import build_trained, load_checkpoint
from orchestrator.worker import Job, build_data
from trainables.collectives import World
from trainables.contracts import Data, Runtime
from trainables.evaluate import evaluate
from trainables.loop import Progress
from trainables.precision import choose_precision, set_deterministic
from trainables.progress import most_at_once
from trainables.recipe import Recipe
from trainables.tasks import build_task


class Stopped(Exception):
    """The evaluation was asked to stop."""


@dataclass(frozen=True, kw_only=True)
class EvaluationJob(Job):
    """A job that evaluates instead of training. `restore` is the checkpoint, the view's `val` are the samples.

    Reports {"evaluated": samples seen} on its way, and {"scores", "details", "precision", "epoch"} at the end.
    """

    ema: bool
    """Whether the moving average of the weights is evaluated."""
    indices: tuple[int, ...] | None
    """The model's index of each class of the data; None: the same."""

    def run(self, cache: Cache, runtime: Runtime, threads: int) -> Progress:
        """Runs in every rank. Raises ConfigError where the weights do not fit the model, Stopped when interrupted."""
        recipe = Recipe.model_validate(self.recipe)
        set_deterministic(recipe.deterministic)
        task = build_task(recipe)
        data: Data = build_data(self, cache, recipe, runtime, threads)
        precision = choose_precision(recipe, runtime.device)
        assert self.restore is not None
        state = load_checkpoint(self.restore)
        try:
            model = build_trained(task, data.info, state.ema if self.ema else state.model)
        except ValueError as error:
            raise ConfigError(f"{self.restore}: {error}") from error
        model = model.to(runtime.device, memory_format=precision.memory_format)  # type: ignore[call-overload]

        def on_samples(seen: int) -> None:
            runtime.report({"evaluated": seen * runtime.world_size, "step": seen}, None)
            if runtime.interrupted():
                raise Stopped

        watched = WatchedData(data if self.indices is None else RelabelledData(data, self.indices), on_samples)
        world = World(runtime.rank, runtime.world_size, runtime.device)
        micro = most_at_once(recipe.micro_batch, state.progress.get("micro", 0))
        scores, details = evaluate(task, model, watched, world, precision, micro)
        told = {"precision": str(precision), "epoch": state.progress["epoch"]}
        runtime.report({"scores": scores, "details": details, **told}, None)
        return Progress(stopped_because="evaluated")
