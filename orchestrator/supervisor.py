"""The driver's side of a running loop: it starts the loop, takes its messages and passes on a request to stop."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from orchestrator.data.cache import Cache
from orchestrator.launch import Placement
from orchestrator.mailbox import start_mailbox
from orchestrator.stop import Stop
from orchestrator.worker import Job, run_workers, set_threads
from trainables.contracts import Metrics, State
from trainables.local import LocalRuntime

POLL_SECONDS = 0.1
"""How often the driver takes the workers' messages."""

Handle = Callable[[Metrics, bool], None]
"""Takes a report of the loop, and whether it came with a state."""


def supervise(job: Job, placement: Placement, cache: Cache | None, handle: Handle, stop: Stop) -> str:
    """Run the loop to its end where `placement` says. Returns why it stopped; raises what the loop raised.

    cache: open in this process; workers open their own.
    """
    if placement.in_process:
        assert cache is not None
        return _run_here(job, placement, cache, handle, stop)
    return _run_in_workers(job, placement, handle, stop)


def _run_here(job: Job, placement: Placement, cache: Cache, handle: Handle, stop: Stop) -> str:
    def on_report(metrics: Metrics, state: State | None) -> None:
        handle(metrics, state is not None)

    threads = set_threads(1, placement.gpu, job.threads)
    with LocalRuntime(job.run_folder / "checkpoints", on_report, job.restore, stop=stop.event) as runtime:
        return job.run(cache, runtime, threads).stopped_because


def _run_in_workers(job: Job, placement: Placement, handle: Handle, stop: Stop) -> str:
    import ray

    mailbox = start_mailbox()
    failures: list[Exception] = []
    outcomes: list[Metrics] = []

    def run() -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="orchestrator-") as scratch:
                run_workers(job, mailbox, placement, Path(scratch))
        except Exception as error:
            failures.append(error)

    def take() -> None:
        for message in ray.get(mailbox.take.remote()):
            if message.outcome:
                outcomes.append(message.metrics)
            else:
                handle(message.metrics, message.has_state)

    # not the main thread: there Ray Train would take over Ctrl-C
    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    thread.start()
    told = False
    while thread.is_alive():
        take()
        if stop.event.is_set() and not told:
            mailbox.stop.remote()
            told = True
        thread.join(POLL_SECONDS)
    take()
    ray.kill(mailbox)
    if failures:
        raise failures[0]
    return str(outcomes[0]["stopped_because"])
