"""What is measured before a run and decided once: batch, micro-batch, precision, memory format, compile.

Every rank measures real training steps on made-up images of the largest size, with the most objects that an image of
the data set has; then the ranks agree. The decisions are settings like those of a config file, and take their place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from trainables.collectives import World
from trainables.contracts import DataInfo, Metrics, Runtime, Task
from trainables.optim import choose
from trainables.precision import choose_precision, set_deterministic
from trainables.recipe import Recipe
from trainables.trials import TIMED_STEPS, Bench, Row, Trial

LEAST_STEPS = 8
"""``batch: -1`` leaves an epoch at least so many optimizer steps."""
SAME = 0.02
"""Throughputs that differ by less are the same: then the larger batch, or the plainer setting, is taken."""
ROUNDS = 2
TRIAL_IMAGES = 8
"""Precision and memory format are compared on so many images at a time."""
LONG_SECONDS, COST_SHARE = 300.0, 0.03
"""``amp: auto`` compares precisions on a CPU where the run is expected to take longer, and the comparison no more than
this share of it."""
STEP_SECONDS = 2.0
"""A step that is measured takes about so long at most: fewer images where each takes long."""


@dataclass(frozen=True)
class Decision:
    """The recipe with nothing left to measure; what was decided, and the tables that say why."""

    recipe: Recipe
    decided: Metrics = field(default_factory=dict)
    """The settings that changed."""
    table: list[Row] = field(default_factory=list)
    """A row per measured batch or setting: seconds per step, images per second and bytes, of the slowest rank."""


def decide(
    recipe: Recipe,
    task: Task,
    info: DataInfo,
    runtime: Runtime,
    measured: bool = False,
    largest_batch: int = 0,
) -> Decision:
    """Measure what the recipe leaves open and decide it, the same on all ranks (collective).

    On a CPU, whose memory ends a process without a warning, the micro-batch is planned too, for `largest_batch` where
    that is more than the recipe's. `measured`: all of that was done before, for a recipe like this one.
    Raises ValueError where not even one image fits.
    """
    world = World(runtime.rank, runtime.world_size, runtime.device)
    on_cpu = runtime.device.type == "cpu"
    set_deterministic(recipe.deterministic)
    settled = recipe
    table: list[Row] = []
    plans_memory = on_cpu and runtime.restore() is None
    is_open = recipe.batch == -1 or recipe.compile == "auto" or plans_memory or (on_cpu and _formats_are_open(recipe))
    if is_open and not measured:
        bench = Bench(recipe, task, info, world)
        first = bench.first() if on_cpu else []  # a GPU tells when its memory is full
        if on_cpu and _formats_are_open(recipe):
            settled = _settle_precision(bench, settled, first, table)
        if settled.batch == -1:
            settled = _settle_batch(bench, settled, table)
        elif on_cpu:
            settled = _settle_micro(bench, settled, first, largest_batch)
        if settled.compile == "auto":
            settled = _settle_compile(bench, settled, table)
        bench.close()
    precision = choose_precision(settled, runtime.device)
    last = precision.memory_format == torch.channels_last
    kind = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: False}[precision.dtype]
    choice = choose(settled, settled.total_epochs * -(-info.train // settled.batch))
    settled = settled.model_copy(update={"amp": kind, "channels_last": last, "optimizer": choice.name, "lr": choice.lr})
    keys = ("batch", "micro_batch", "amp", "channels_last", "compile", "optimizer", "lr")
    changed = {key: getattr(settled, key) for key in keys if getattr(settled, key) != getattr(recipe, key)}
    return Decision(settled, changed, table)


def _formats_are_open(recipe: Recipe) -> bool:
    """Whether precision or memory format are to be decided by measurement: never for runs that are to repeat."""
    return not recipe.deterministic and (recipe.amp in ("auto", True) or recipe.channels_last == "auto")


def _settle_precision(bench: Bench, recipe: Recipe, first: list[Row], table: list[Row]) -> Recipe:
    """On a CPU: precision and memory format by measurement, where that is asked for or the run is long."""
    each = (first[-1]["seconds"] or math.inf) / first[-1]["images"]
    size = _most_that_fits(bench, first, min(TRIAL_IMAGES, _share(recipe, bench), max(int(STEP_SECONDS / each), 1)))
    plain = recipe.model_copy(update={"amp": False}) if recipe.amp in (True, "auto") else recipe
    cost = (1 + 4 * ROUNDS) * (1 + TIMED_STEPS) * size * each
    is_long = _is_long(recipe, bench, first[-1], cost)
    if is_long:  # two images take longer, each, than they do among more
        is_long = _is_long(recipe, bench, bench.agree(bench.measure(bench.plain(size, plain))), cost)
    precisions = [False, "bf16"] if recipe.amp is True or (recipe.amp == "auto" and is_long) else [recipe.amp]
    measured = recipe.channels_last == "auto" and (is_long or len(precisions) > 1)
    formats = [True, False] if measured else [recipe.channels_last]
    if len(precisions) * len(formats) == 1:
        return recipe
    choices = [recipe.model_copy(update={"amp": a, "channels_last": c}) for a in precisions for c in formats]
    # in rounds, each in turn: what else the machine does meets all of them
    rounds = [[bench.measure(bench.plain(size, choice)) for choice in choices] for _ in range(ROUNDS)]
    rows = [bench.agree(min(tries, key=_seconds)) for tries in zip(*rounds, strict=True)]
    table += rows
    rates = [row["images_per_second"] or 0.0 for row in rows]
    best = next(i for i, rate in enumerate(rates) if rate >= max(rates) * (1 - SAME))
    return choices[best]


def _seconds(row: Row) -> float:
    return math.inf if row["seconds"] is None else float(row["seconds"])


def _is_long(recipe: Recipe, bench: Bench, row: Row, cost: float) -> bool:
    """Whether the run, at this row's throughput, is worth a measurement of so many seconds."""
    rate = row["images_per_second"]
    limit = max(LONG_SECONDS, cost / COST_SHARE)
    return rate is not None and bench.info.train * recipe.total_epochs / rate > limit


def _settle_batch(bench: Bench, recipe: Recipe, table: list[Row]) -> Recipe:
    """The share of a rank with the best throughput within memory, times the ranks."""
    ranks, size, rows = bench.world.size, 1, list[Row]()
    most = max(bench.info.train // (LEAST_STEPS * ranks), 1)
    while size <= most:
        trial = bench.plain(size, recipe)
        expected = _expected_bytes(rows, size) if bench.world.device.type == "cpu" else 0
        if expected > min(bench.world.gather(bench.limit)):  # a CPU gives no second chance
            unmeasured = {"seconds": None, "images_per_second": None, "bytes": expected, "fits": False}
            rows.append(trial.row() | unmeasured | {"batch": size * ranks})
            break
        row = bench.agree(bench.measure(trial))
        rows.append(row | {"batch": size * ranks})
        if not row["fits"] or _has_fallen(rows):
            break
        size *= 2
    table += rows
    fitting = [row for row in rows if row["fits"]]
    if not fitting:
        raise ValueError(_one_is_too_much(bench, rows[0]))
    best = max(row["images_per_second"] for row in fitting)
    chosen = max(row["images"] for row in fitting if row["images_per_second"] >= best * (1 - SAME))
    return recipe.model_copy(update={"batch": chosen * ranks})


def _expected_bytes(rows: list[Row], size: int) -> int:
    """The memory that so many images take, as the last two sizes tell; 0 where they do not."""
    if len(rows) < 2:
        return 0
    one, two = rows[-2:]
    each = max(two["bytes"] - one["bytes"], 0) / (two["images"] - one["images"])
    return int(two["bytes"] + each * (size - two["images"]))


def _has_fallen(rows: list[Row]) -> bool:
    """Whether the last two sizes were slower than the one before them: the best has been passed."""
    rates = [row["images_per_second"] or 0.0 for row in rows[-3:]]
    return len(rates) == 3 and max(rates[1:]) < rates[0] * (1 - SAME)


def _settle_micro(bench: Bench, recipe: Recipe, first: list[Row], largest_batch: int) -> Recipe:
    """On a CPU: a micro-batch that memory holds, where the whole share does not fit."""
    batch = max(recipe.batch, largest_batch)
    wanted = min(-(-batch // bench.world.size), recipe.micro_batch or batch)
    fits = _most_that_fits(bench, first, wanted)
    return recipe if fits >= wanted else recipe.model_copy(update={"micro_batch": fits})


def _most_that_fits(bench: Bench, first: list[Row], wanted: int) -> int:
    """How many images memory holds, as one and two of them tell. Raises ValueError where one does not fit."""
    one, two = first
    if not one["fits"]:
        raise ValueError(_one_is_too_much(bench, one))
    if not two["fits"]:
        return 1
    limit = min(bench.world.gather(bench.limit))
    each = max(two["bytes"] - one["bytes"], 1)
    return max(1, min(wanted, 2 + int((limit - two["bytes"]) / each)))


def _settle_compile(bench: Bench, recipe: Recipe, table: list[Row]) -> Recipe:
    """Compile where it is faster; a model that cannot be compiled is not."""
    size = min(_share(recipe, bench), recipe.micro_batch or TRIAL_IMAGES, TRIAL_IMAGES if bench.base else 64)
    plain = bench.plain(size, recipe)
    rows = [bench.agree(bench.measure(plain))]
    try:
        compiled = bench.measure(Trial(size, plain.precision, compiled=True))
    except Exception as error:  # whatever a compiler raises
        compiled = plain.row() | {"compile": True, "seconds": None, "bytes": None, "error": str(error).splitlines()[:1]}
    rows.append(bench.agree(compiled))
    table += rows
    before, after = (row["images_per_second"] or 0.0 for row in rows)
    return recipe.model_copy(update={"compile": after > before * (1 + SAME)})


def _share(recipe: Recipe, bench: Bench) -> int:
    """The most images that a rank has of a batch."""
    return TRIAL_IMAGES if recipe.batch == -1 else -(-recipe.batch // bench.world.size)


def _one_is_too_much(bench: Bench, row: Row) -> str:
    needs = f"{row['bytes'] / 1e9:.2f} GB" if row["bytes"] else "more"
    size = bench.info.largest or bench.info.imgsz
    return (
        f"imgsz = {size}: a training step on one image takes {needs}, and a worker may use {bench.limit / 1e9:.2f} GB: "
        "lower imgsz, take a smaller model, or set memory"
    )
