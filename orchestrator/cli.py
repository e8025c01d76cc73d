"""The command line. Light to import: what is heavy is imported by the command that needs it.

Exit codes: 0 done; 1 the run failed; 2 the user's input is wrong; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import psutil
import typer

from orchestrator.config import ConfigError
from orchestrator.console import Screen
from orchestrator.errors import RunError
from orchestrator.launch import connect_early
from orchestrator.reading import read_source, validate
from orchestrator.schema import json_schema, schema_keys, schema_markdown
from orchestrator.stop import Impatience
from orchestrator.sweeps.journal import is_sweep

if TYPE_CHECKING:
    from orchestrator.run import Result

STARTED = psutil.Process().create_time()
"""When the user pressed Enter: the wall-clock time of this process's start."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    help="Train computer-vision models from one YAML file, on a laptop or a cluster.",
)

ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file.")]
Local = Annotated[bool, typer.Option("--local", help="Train in this process, without Ray workers.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show Ray's output and whole tracebacks.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override keys of the file.")]
Keys = Annotated[list[str] | None, typer.Argument(metavar="KEY", help="Keys, or how they begin.")]
Folder = Annotated[
    str | None, typer.Option("--dir", help="Folder of the caches, in place of ORCHESTRATOR_CACHE or the user's own.")
]

cache = typer.Typer(no_args_is_help=True, help="List, remove and verify the caches of decoded images.")
app.add_typer(cache, name="cache")


def _keys_help() -> str:
    """Every key of the schema, one per paragraph of the help."""
    lines = [f"  {k.name} ({k.default}): {k.description}" for k in schema_keys()]
    return "\n\n".join(["\b\nKEYS (default)\n" + "\n".join(lines)])


@app.command(epilog=_keys_help())
def train(config: ConfigFile, overrides: Overrides = None, local: Local = False, verbose: Verbose = False) -> None:
    """Train a model as CONFIG says."""
    source = read_source(config, overrides or [])
    valid, problems = validate(source)
    early = None if problems else connect_early(valid, local, verbose)
    with _screen(verbose) as screen:
        from orchestrator.train import train_source

        _run(
            lambda: train_source(source, local=local, verbose=verbose, started=STARTED, early=early, screen=screen),
            verbose,
        )


@app.command()
def tune(config: ConfigFile, overrides: Overrides = None, verbose: Verbose = False) -> None:
    """Search for the best configuration as `tune` in CONFIG says."""
    source = read_source(config, overrides or [])
    valid, problems = validate(source)
    from orchestrator.sweeps.screen import SweepScreen
    from orchestrator.sweeps.space import parse_space

    if valid and valid.tune.space is not None:
        problems = [*problems, *parse_space(valid.tune.space, valid)[1]]
    early = None if problems or not valid else connect_early(valid, False, verbose, surely=True)

    screen = SweepScreen(verbose)
    screen.waiting("checking the config, the space, the data and the model")
    with screen:
        from orchestrator.tune import tune_source

        _run(lambda: tune_source(source, verbose=verbose, early=early, screen=screen), verbose)


@app.command()
def resume(
    run: Annotated[str, typer.Argument(metavar="RUN|SWEEP", help="Folder of an interrupted run or sweep.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[scaling.KEY=VALUE]...", help="Other machines than before.")
    ] = None,
    local: Local = False,
    verbose: Verbose = False,
) -> None:
    """Go on with an interrupted run from its last checkpoint, or with an interrupted sweep."""
    if is_sweep(run):
        from orchestrator import tune as tuning

        _run(lambda: tuning.resume_sweep(run, overrides or (), verbose=verbose), verbose)
        return
    with _screen(verbose) as screen:
        from orchestrator import train as training

        _run(lambda: training.resume(run, tuple(overrides or ()), local=local, verbose=verbose, screen=screen), verbose)


@app.command()
def extend(
    run: Annotated[
        str, typer.Argument(metavar="RUN|SWEEP", help="Folder of a finished, stopped or interrupted run or sweep.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE...",
            help="Of a run: epochs, time, patience, min_delta, extend_lr (restart or hold), scaling.*. Of a sweep: "
            "samples, epochs (of a trial), hours, total_epochs, as 40, +20 or 2x; scaling.*.",
        ),
    ] = None,
    local: Local = False,
    verbose: Verbose = False,
) -> None:
    """Give a run more epochs, time or patience, or a sweep more trials, and go on with it."""
    if is_sweep(run):
        from orchestrator import tune as tuning

        _run(lambda: tuning.extend_sweep(run, overrides or (), verbose=verbose), verbose)
        return
    with _screen(verbose) as screen:
        from orchestrator import train as training

        _run(lambda: training.extend(run, tuple(overrides or ()), local=local, verbose=verbose, screen=screen), verbose)


@app.command()
def val(
    target: Annotated[
        str, typer.Argument(metavar="RUN|CHECKPOINT", help="Folder of a run, or RUN/checkpoints/best or last.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="split (val, test or train), weights (auto, ema or raw), data, format, batch, imgsz, metric, amp, "
            "cache and its keys, scaling.*",
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Evaluate a run's best checkpoint on its validation set, or on other data."""
    from orchestrator.evaluating.screen import ValScreen

    screen = ValScreen(verbose)
    screen.waiting("checking the run and the data")
    from orchestrator.evaluate import evaluate_run

    sys.path.insert(0, "")  # models of the user's own lie in the current folder
    own = {"split", "weights"}
    given: dict[str, Any] = dict(o.split("=", 1) for o in overrides or () if o.partition("=")[0] in own and "=" in o)
    others = [o for o in overrides or () if o.partition("=")[0] not in own or "=" not in o]
    try:
        evaluate_run(target, others, verbose=verbose, screen=screen, **given)
    except KeyboardInterrupt as error:
        typer.echo("orchestrator: interrupted", err=True)
        raise typer.Exit(130) from error
    except RunError as error:
        if verbose:
            raise
        typer.echo(f"orchestrator: {error}", err=True)
        raise typer.Exit(1) from error


@app.command()
def check(
    target: Annotated[str, typer.Argument(metavar="CONFIG|DATA", help="YAML file; or folder, file or URI of data.")],
    overrides: Overrides = None,
    format: Annotated[str | None, typer.Option("--format", help="How the data is laid out, as coco or yolo.")] = None,
    out: Annotated[str | None, typer.Option("--out", help="Folder for check.json and check.html.")] = None,
) -> None:
    """Look at every image and label of a data set, and write down what was found."""
    from orchestrator.check import check as check_data
    from orchestrator.checking.screen import CheckScreen

    sys.path.insert(0, "")  # readers of the user's own lie in the current folder
    screen = CheckScreen()
    try:
        with screen:
            report = check_data(target, overrides or (), format, out, screen)
    except KeyboardInterrupt as error:
        typer.echo("orchestrator: interrupted", err=True)
        raise typer.Exit(130) from error
    if report.refused:
        raise ConfigError(f"a run refuses this data: {report.refused}")


@cache.command("ls")
def list_caches(folder: Folder = None) -> None:
    """List the caches with their size, state and last use."""
    from orchestrator import cache_commands

    cache_commands.list_caches(folder)


@cache.command("rm")
def remove_caches(
    keys: Keys = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Those whose build was interrupted.")] = False,
    older_than: Annotated[
        float | None, typer.Option("--older-than", metavar="DAYS", min=0, help="Those not used for so long.")
    ] = None,
    folder: Folder = None,
) -> None:
    """Remove caches; those in use stay.

    A run that needs one builds it again.
    """
    from orchestrator import cache_commands

    if not cache_commands.remove_caches(keys or (), everything, unfinished, older_than, folder):
        raise typer.Exit(1)


@cache.command("verify")
def verify_caches(keys: Keys = None, folder: Folder = None) -> None:
    """Compare the caches with their hashes.

    What is damaged is removed, and made again by the next run that needs it.
    """
    from orchestrator import cache_commands

    if not cache_commands.verify_caches(keys or (), folder):
        raise typer.Exit(1)


@app.command()
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="The table of docs/config.md instead.")] = False,
) -> None:
    """Print the JSON schema of config files, for editors."""
    typer.echo(schema_markdown() if markdown else json.dumps(json_schema(), indent=2), nl=not markdown)


def _screen(verbose: bool) -> Screen:
    """The screen, with a first sign of life before the seconds that importing torch takes."""
    screen = Screen(verbose)
    screen.waiting("checking the config, the data and the model")
    return screen


def _run(command: Callable[[], Result], verbose: bool) -> None:
    sys.path.insert(0, "")  # models of the user's own lie in the current folder
    try:
        result = command()
    except Impatience:
        typer.echo("orchestrator: interrupted", err=True)
        os._exit(130)  # without the clean-up of Ray and other threads, which may wait for a step
    except RunError as error:
        if verbose:
            raise
        typer.echo(f"orchestrator: {error}", err=True)
        raise typer.Exit(1) from error
    if result.interrupted:
        raise typer.Exit(130)


def main() -> None:
    """The console script."""
    try:
        app()
    except ConfigError as error:
        typer.echo(f"orchestrator: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("orchestrator: interrupted", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
