"""The bridge to Ray Tune: who is asked what to try next, who judges a result, and what runs in a trial's actor.

Tune places the trials, starts and reuses their actors, and notices when one is lost. What is tried and when it stops
is the sweep's business (`Director`), so that its journal knows all of it: nothing of Tune's own state is ever read.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Protocol, Self

from ray import tune
from ray.exceptions import RayError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from orchestrator.mailbox import Message
from orchestrator.sweeps.trial import Shared, Spec, TrialProcess

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal and results.csv have everything
    "TUNE_DISABLE_AUTO_INIT": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # Tune's own state is not used
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
STOP_SECONDS = 120.0
"""How long a trial may take to stop: its step, and its checkpoint."""
HEAD = "node:__internal_head__"
"""A resource that Ray's head node alone has, 1.0 of it."""


class Director(Protocol):
    """What Tune asks and tells. All calls come from Tune's thread."""

    def next(self) -> Spec | None:
        """The next trial; None where there is none now."""

    def has_more(self) -> bool:
        """Whether there may be a next trial later."""

    def take(self, number: int, messages: list[Message]) -> bool:
        """What a trial has reported; whether it is to stop."""

    def lost(self, spec: Spec, reason: str, final: bool) -> Spec:
        """A trial's process was lost; `final`: it is not tried again. Returns how it goes on."""

    def is_over(self) -> bool:
        """Whether all trials are to stop."""


class TrialActor(tune.Trainable):
    """The actor of a trial, and of the trials after it."""

    def setup(self, config: dict[str, Any], shared: Shared) -> None:  # type: ignore[override]
        self._process = TrialProcess(shared)
        self._next: Spec | None = config["spec"]

    def step(self) -> dict[str, Any]:
        spec, self._next = self._next, None
        if spec is not None:  # not before: Tune loses a trial whose actor fails while it is being reset
            self._process.begin(spec)
        return {"messages": self._process.take()}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._next = new_config["spec"]
        return True

    def cleanup(self) -> None:
        self._process.close()


class Link:
    """Leads to the director. Tune copies and pickles what it is given, for a restore that is never asked for."""

    _director: Director

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Asker(Link, Searcher):
    """Asks the director for trials."""

    def __init__(self, director: Director) -> None:
        super().__init__()
        self._director = director

    def suggest(self, trial_id: str) -> Any:
        spec = self._director.next()
        if spec is not None:
            return {"spec": spec}
        return None if self._director.has_more() else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class Judge(Link, FIFOScheduler):
    """Hands every result to the director, and its verdict to Tune."""

    _supports_buffered_results = False

    def __init__(self, director: Director) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._director = director

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        # else a trial is killed 10 s after the sweep was stopped, whether its checkpoint is written or not
        controller = getattr(tune_controller, "_tune_controller", tune_controller)
        controller._actor_force_cleanup_timeout = STOP_SECONDS

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        stop = self._director.take(trial.config["spec"].number, result["messages"])
        verdict: str = self.STOP if stop else self.CONTINUE
        return verdict

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        spec = trial.config["spec"]
        retried = trial.status == Trial.ERROR  # Tune has given it this status on the way to being queued again
        trial.config["spec"] = self._director.lost(spec, _reason(trial), not retried)


class Over(Link, tune.Stopper):
    def __init__(self, director: Director) -> None:
        self._director = director

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._director.is_over()


def run(director: Director, shared: Shared, concurrent: int, retries: int, scratch: Path, verbose: bool) -> None:
    """Run the trials in Ray Tune until the director says that it is over (blocks). Raises what Tune raises.

    Not for the main thread, where Tune would take over Ctrl-C. scratch: for Tune's own files, seen by all nodes.
    """
    for name, value in (ENVIRONMENT | {"TUNE_MAX_PENDING_TRIALS_PG": str(concurrent)}).items():
        os.environ[name] = value
    logging.getLogger("ray.tune").setLevel(logging.INFO if verbose else logging.CRITICAL)
    trainable = tune.with_parameters(TrialActor, shared=shared)
    tuner = tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([_resources(shared)])),
        tune_config=tune.TuneConfig(
            search_alg=Asker(director),
            scheduler=Judge(director),
            num_samples=-1,
            max_concurrent_trials=concurrent,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(scratch),
            stop=Over(director),
            failure_config=tune.FailureConfig(max_failures=retries),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    tuner.fit()


def was_lost(error: Exception) -> bool:
    """Whether Tune ended since Ray ended an actor in a way that Tune does not know (Ray 2.60: memory ran out)."""
    return isinstance(error.__cause__, RayError)


def _resources(shared: Shared) -> dict[str, float]:
    """Of the actor: those of a worker where it trains itself; the workers of a nested run ask for their own.

    It then only watches them, from the head, which outlives the machines of the workers.
    """
    return shared.placement.resources if shared.placement.workers == 1 else {HEAD: 0.001}


def _name(trial: Any) -> str:
    return f"trial-{trial.config['spec'].number}"


def _reason(trial: Any) -> str:
    """The last that Tune wrote about a trial's failure."""
    path = trial.error_file
    if path is None or not Path(path).exists():
        return "its process was lost"
    text = Path(path).read_text()
    return text.rpartition("Failure # ")[2].partition("\n")[2].strip() or text
