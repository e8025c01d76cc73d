"""The state of a sweep: a function of its journal. Everything that happens is an event: journalled, then applied.

No Ray here: `orchestrator.sweeps.tuner` tells what its trials report, and asks what to try next.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.sweeps.journal import Event, Journal
from orchestrator.sweeps.records import Decision, Params, Status, Trial, is_number
from orchestrator.sweeps.schedulers import Asha, Scheduler
from orchestrator.sweeps.searchers import Searcher
from trainables.contracts import Metrics, Mode

SAME_BUG = 3
"""Trials that fail for the same reason, before any has had a result, end the sweep."""
SAMPLES, BUDGET = "samples", "budget"


@dataclass(frozen=True)
class Limits:
    """When a sweep ends: after so many trials, seconds of wall clock or epochs in all; None: no limit."""

    samples: int | None
    seconds: float | None
    epochs: int | None


@dataclass(frozen=True)
class Plan:
    """How a sweep goes on from here: until it is extended, all of it."""

    metric: str
    mode: Mode
    max_epochs: int
    """Of a trial."""
    limits: Limits
    searcher: Searcher
    scheduler: Scheduler
    scheduler_name: str
    searcher_name: str
    starts: Sequence[tuple[str, Params]]
    """Who proposes it, and what is tried before the searcher is asked."""


@dataclass
class State:
    """The trials of a sweep and what was decided about them."""

    plan: Plan
    journal: Journal | None = None
    """None while a journal is replayed."""
    trials: dict[int, Trial] = field(default_factory=dict)
    folders: dict[int, str] = field(default_factory=dict)
    """Of each trial, by name, in the sweep's folder."""
    decisions: list[Decision] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    """What was measured before the trials: precision, memory format, micro-batch; part of every trial's recipe."""
    waiting: deque[int] = field(default_factory=deque)
    """Trials that were interrupted or revived, which go on before new ones are tried."""
    exhausted: bool = False
    """Whether the searcher has nothing left to try."""
    earlier_seconds: float = 0.0
    """Of the sessions before this one."""
    began: float = field(default_factory=time.time)
    unclosed: set[int] = field(default_factory=set)
    """Trials that have ended in a session that was killed: what was told of them elsewhere may lack something."""
    _proposed: Params | None = None
    """What the searcher was asked for already."""

    # ------------------------------------------------------------------------------------------ what may happen

    def record(self, kind: str, **fields: Any) -> None:
        """Journal an event and apply it."""
        assert self.journal is not None
        self.apply(self.journal.append(kind, **fields))

    def next(self, folder_of: Callable[[int], str]) -> Trial | None:
        """The next trial: one that waits, else a new configuration in a folder that `folder_of` makes.

        None where nothing is left to try.
        """
        if self.waiting:
            return self.trials[self.waiting.popleft()]
        number = len(self.trials)
        if self.all_started:
            return None
        by, params = self.plan.searcher_name, None
        if number < len(self.plan.starts):
            by, params = self.plan.starts[number]
        else:
            params, self._proposed = self._proposed or self.plan.searcher.ask(number), None
        if params is None:
            self.exhausted = True
            return None
        self.record("trial", trial=number, params=params, by=by, folder=folder_of(number))
        return self.trials[number]

    def epoch(self, number: int, row: Metrics) -> bool:
        """Take the row of a trial's epoch; whether the scheduler stops the trial. A row that is known is ignored."""
        trial = self.trials[number]
        if row["epoch"] <= trial.epochs:
            return False
        decision = self._judge(trial, row)
        self.record("epoch", trial=number, row=row, decision=vars(decision) if decision else None)
        return decision is not None and decision.stop

    def end(self, number: int, status: Status, because: str) -> None:
        """A trial has ended, for good or until the sweep is resumed."""
        if self.trials[number].status == "running":
            self.record("end", trial=number, status=status, because=because)

    def extend(self, changes: dict[str, Any], plan: Plan) -> None:
        """Go on by `plan`. Trials go on that a budget had stopped; and, where trials have more epochs now, those that
        are among the best of the last rung that they reached, finished or stopped early."""
        scheduler, longer = self.plan.scheduler, plan.max_epochs > self.plan.max_epochs
        revived = []
        for number, trial in self.trials.items():
            ended = trial.status == "finished" or trial.because == self.plan.scheduler_name
            survives = scheduler.survives(number) if isinstance(scheduler, Asha) else trial.status == "finished"
            if trial.because == BUDGET or (ended and survives and longer):
                revived.append(number)
        self.record("extended", changes=changes)
        self.change(plan)
        for number in revived:
            self.record("revived", trial=number)

    # -------------------------------------------------------------------------------------------- what it comes to

    @property
    def all_started(self) -> bool:
        limit = self.plan.limits.samples
        return self.exhausted or (limit is not None and len(self.trials) >= limit)

    @property
    def seconds(self) -> float:
        """Of wall-clock time, over all sessions."""
        return self.earlier_seconds + time.time() - self.began

    @property
    def epochs_spent(self) -> int:
        return sum(trial.epochs for trial in self.trials.values())

    @property
    def over(self) -> str:
        """Why the sweep is over (samples or budget), or nothing."""
        limits = self.plan.limits
        if limits.epochs is not None and self.epochs_spent >= limits.epochs:
            return BUDGET
        if limits.seconds is not None and self.seconds >= limits.seconds:
            return BUDGET
        running = any(trial.status == "running" for trial in self.trials.values())
        return SAMPLES if self.all_started and not self.waiting and not running else ""

    @property
    def common_failure(self) -> str:
        """The reason that the first trials failed for, all the same, where nothing has had a result; or nothing."""
        ended = [trial for trial in self.trials.values() if trial.status == "failed"]
        same = {trial.because for trial in ended[:SAME_BUG]}
        none = not any(trial.rows for trial in self.trials.values())
        return ended[0].because if len(ended) >= SAME_BUG and len(same) == 1 and none else ""

    # ------------------------------------------------------------------------------------------------- the events

    def replay(self, events: Iterable[Event], extend: Callable[[dict[str, Any]], Plan]) -> None:
        """Become what the journal says. `extend` makes the plan of an event "extended" from its changes."""
        first = last = 0.0
        for event in events:
            if event["kind"] == "session":
                self.earlier_seconds += last - first
                first = event["time"]
            elif event["kind"] == "extended":
                self.change(extend(event["changes"]))
            self.apply(event)
            last = event["time"]
            first = first or last
        self.earlier_seconds += last - first
        self.began = time.time()
        self.waiting = deque(n for n, t in self.trials.items() if t.status in ("running", "interrupted"))
        for number in self.waiting:
            self.trials[number].status = "running"
        self.unclosed.difference_update(self.waiting)
        if self.plan.limits.samples is None and len(self.trials) >= len(self.plan.starts):
            self._proposed = self.plan.searcher.ask(len(self.trials))
            self.exhausted = self._proposed is None

    def change(self, plan: Plan) -> None:
        """Go on by another plan: its scheduler and searcher learn what the trials came to."""
        self.plan, self.exhausted, self._proposed = plan, False, None
        for trial in self.trials.values():
            plan.searcher.take(trial.number, trial.params)
            for done in range(1, len(trial.rows) + 1):
                self._judge(trial, trial.rows[done - 1], done)
            if trial.status != "running":
                self._tell(trial)

    def apply(self, event: Event) -> None:
        """What an event does to the state."""
        number = event.get("trial")
        match event["kind"]:
            case "trial":
                assert number is not None
                self.trials[number] = Trial(number, event["params"], event["by"])
                self.folders[number] = event["folder"]
                if self.journal is None or number < len(self.plan.starts):
                    self.plan.searcher.take(number, event["params"])
            case "epoch":
                assert number is not None
                trial, decision = self.trials[number], event["decision"]
                if self.journal is None:
                    self._judge(trial, event["row"])
                trial.rows.append(event["row"])
                if decision:
                    self.decisions.append(Decision(**decision))
                    if decision["stop"]:  # the end of the trial, also where the driver dies now
                        self._end(trial, "stopped", self.plan.scheduler_name)
            case "retry":
                assert number is not None
                self.trials[number].retries += 1
            case "revived":
                assert number is not None
                self.trials[number].status, self.trials[number].because = "running", ""
                self.waiting.append(number)
            case "end":
                assert number is not None
                self._end(self.trials[number], event["status"], event["because"])
            case "decided":
                self.settings = event["settings"]
            case "closed":
                self.unclosed.clear()

    def _end(self, trial: Trial, status: Status, because: str) -> None:
        trial.status, trial.because = status, because
        if self.journal is None:
            self.unclosed.add(trial.number)
        if status != "interrupted":
            self._tell(trial)

    def _judge(self, trial: Trial, row: Metrics, done: int | None = None) -> Decision | None:
        """What the scheduler says of a trial after `row`, which is the last of its first `done` rows, or new."""
        plan = self.plan
        if not is_number(row.get(plan.metric)):
            return None
        rows = trial.rows[:done] if done is not None else [*trial.rows, row]
        best = Trial(trial.number, {}, "", rows=rows).best(plan.metric, plan.mode)
        assert best is not None
        return plan.scheduler.judge(trial.number, row["epoch"], best[0])

    def _tell(self, trial: Trial) -> None:
        values = [(row["epoch"], row[self.plan.metric]) for row in trial.rows if is_number(row.get(self.plan.metric))]
        finished = trial.status == "finished" or trial.because == "patience"
        self.plan.searcher.tell(trial.number, values if trial.status != "failed" else [], finished=finished)
