"""The one schema: a Recipe plus data, storage, machines and tracking."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import yaml
from pydantic import Field, field_validator

from trainables.recipe import Bool, Float, Int, Recipe, Settings, Text, Unavailable, parse_bytes
from trainables.registry import did_you_mean

FORMAT_VERSION = 1
"""Of config.yaml in a run folder."""

DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
"""libyaml's where it is there: ten times faster, which a sweep of a thousand trials notices."""

FORMATS = ("auto", "digits", "yolo", "coco", "voc", "parquet", "imagefolder")
"""Values of `format`, beside readers of the user's own."""


class ConfigError(ValueError):
    """The user's input is wrong: the message says what, where, and what to do. Exit code 2."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a config, at a dotted key."""

    key: str
    message: str


class Scaling(Settings):
    """Where the training runs."""

    unavailable: ClassVar[dict[str, Unavailable]] = {"workers": lambda v: isinstance(v, list)}

    workers: Literal["auto"] | Int | list[Int] = Field(
        "auto",
        description="Data-parallel workers; auto: every GPU of the machine or cluster, one process without Ray on a "
        "machine with one GPU or none.",
    )
    address: Text | None = Field(
        None, description="Ray cluster to run on (host:port, or auto); null: RAY_ADDRESS, else this machine."
    )

    @field_validator("workers")
    @classmethod
    def _workers(cls, value: Any) -> Any:
        if isinstance(value, int) and value < 1:
            raise ValueError("Input should be auto or at least 1")
        return value


class Tracking(Settings):
    """Where the numbers go."""

    uri: Text | None = Field(
        None, description="MLflow server or store; null: MLFLOW_TRACKING_URI, else a local store under storage."
    )
    experiment: Text | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description="MLflow experiment and folder of the run; null: the data set's name.",
    )

    @field_validator("uri")
    @classmethod
    def _uri(cls, value: str | None) -> str | None:
        if value and redact(value) != value:
            raise ValueError(
                "must not hold a password, which would be stored with the run: "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        return value


class Tune(Settings):
    """How `orchestrator tune` searches."""

    space: dict[str, Any] | None = Field(
        None,
        description="Config keys (dotted) and where each is searched, as {lr: {loguniform: [1.0e-4, 0.1]}}; null: "
        "optimizer, lr, lrf and batch.",
    )
    searcher: Text = Field(
        "optuna",
        description="Who proposes configurations: random, grid, optuna (TPE), or package.module:function.",
    )
    scheduler: Text = Field(
        "asha",
        description="Who stops bad trials early: asha, hyperband (asha with several graces), median, none, or "
        "package.module:function.",
    )
    samples: Int | None = Field(
        None, ge=1, description="Configurations to try; null: 16, for grid all of its combinations."
    )
    hours: Float | None = Field(None, gt=0, description="Most wall-clock hours of the sweep, over all sessions.")
    epochs: Int | None = Field(None, ge=1, description="Most epochs of all trials together.")
    max_epochs: Int | None = Field(None, ge=1, description="Epochs of a trial that nothing stops; null: `epochs`.")
    grace: Int | None = Field(
        None,
        ge=1,
        description="Epochs before a trial may be stopped; null: a 27th of its epochs, and more than the warm-up.",
    )
    reduction: Int = Field(3, ge=2, description="One in so many trials goes on at each comparison of asha, hyperband.")
    brackets: Int = Field(3, ge=1, le=8, description="Graces that hyperband tries, each `reduction` times the last.")
    start_from: list[dict[str, Any] | Text] = Field(
        [],
        description="Configurations to try first, after the config's own, as {lr: 0.01}; or folders of earlier sweeps "
        "to learn from.",
    )
    concurrent: Int | None = Field(
        None, ge=1, description="Most trials at once; null: as many as the machine or cluster holds."
    )
    cpus: Int | None = Field(
        None, ge=1, description="CPUs of a trial's worker; null: 1, with GPUs a GPU's share of its machine."
    )
    gpus: Float | None = Field(
        None, ge=0, description="GPUs of a trial's worker, also a half, third or quarter; null: 1 where there are any."
    )
    retries: Int = Field(3, ge=0, description="How often a trial goes on after its process, or its machine, was lost.")
    continue_best: Bool = Field(False, description="Train the winner on, to the whole of `epochs`.")

    @field_validator("gpus")
    @classmethod
    def _gpus(cls, value: float | None) -> float | None:
        if value and (value % 1 if value > 1 else abs(1 / value - round(1 / value)) > 1e-6):
            raise ValueError("must be a whole number, or a half, third, quarter ... of a GPU: Ray gives no others")
        return value


class Config(Recipe):
    """Everything that one run needs. Frozen; unknown keys are refused."""

    data: Text = Field(
        min_length=1,
        description="Folder or file of the data set, also s3:// and gs://, or digits: 1,797 handwritten digits that "
        "need no download.",
    )
    format: Text = Field(
        "auto",
        description="How the data set is laid out: digits, yolo, coco, voc, parquet, imagefolder, or "
        "package.module:function, a reader of your own; auto detects it and says so.",
    )
    exif_labels: Literal["auto", "stored", "upright"] = Field(
        "auto",
        description="What the boxes and masks of photos with an EXIF orientation were drawn on: the pixels as they are "
        "stored, or the upright picture; auto: as the declared size tells, else stored.",
    )
    fraction: Float = Field(
        1.0, gt=0, le=1, description="Share of the training set that is used, of each class alike; 0.1 lies within 0.2."
    )
    val_fraction: Float = Field(
        0.2, gt=0, lt=1, description="Share of each class that is split off where there is no validation set."
    )
    max_bad_fraction: Float = Field(
        0.01, ge=0, le=1, description="Share of the images that may be unreadable; they are left out and listed."
    )
    cache: Literal["auto", "ram", "disk"] | Bool = Field(
        "auto",
        description="Where decoded images are kept, once per machine: disk, ram (also true), or nowhere (false: "
        "decoded again in every epoch); auto: the first of these that has room.",
    )
    cache_dir: Text | None = Field(
        None, description="Folder of the cache; null: ORCHESTRATOR_CACHE, else the user's cache folder."
    )
    cache_quota: Int | Text | None = Field(
        None,
        description="Most that the folder of the cache may take, as 50GB; the caches not used for longest are removed.",
    )
    storage: Text = Field("runs", min_length=1, description="Folder that run folders and the local MLflow store go to.")
    name: Text | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description="Name of the run; null: model, date and time. A taken name gets a number.",
    )
    record_samples: Bool = Field(
        False,
        description="Each worker writes the ids and pixel hashes of what it received to logs/samples-RANK.jsonl.",
    )
    profile: Bool = Field(
        False,
        description="Trace a few training steps with torch.profiler: logs/profile.json (for ui.perfetto.dev) and "
        "logs/profile.txt.",
    )
    scaling: Scaling = Field(Scaling(), description="Where the training runs.")
    tracking: Tracking = Field(Tracking(), description="Where the numbers go.")
    tune: Tune = Field(Tune(), description="How `orchestrator tune` searches.")

    @field_validator("format")
    @classmethod
    def _format(cls, value: str) -> str:
        if value not in FORMATS and ":" not in value:
            raise ValueError(f"unknown format {value!r}: {did_you_mean(value, FORMATS)}")
        return value

    @field_validator("cache_quota")
    @classmethod
    def _cache_quota(cls, value: int | str | None) -> int | str | None:
        if value is not None and parse_bytes(value) <= 0:
            raise ValueError("must be a number of bytes, or a text like 500MB, 50GB or 1TB")
        return value


def yaml_text(value: Any) -> str:
    """A value as one writes it in YAML."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def redact(text: str) -> str:
    """The text with the credentials of every URI in it (user:password@, ?password=) replaced."""
    text = re.sub(r"://[^/\s\"'<>]*@", "://***@", text)
    return re.sub(r"([?&](?:password|passwd|pwd|token|secret|api_key)=)[^&\s\"'<>]+", r"\1***", text, flags=re.I)


def dump(config: Config) -> str:
    """The YAML text of a resolved config, every key in the order of the schema; `tune` where it says something."""
    silent = {"tune"} if config.tune == Tune() else set()
    values = {"format_version": FORMAT_VERSION, **config.model_dump(mode="json", exclude=silent)}
    return str(yaml.dump(values, Dumper=DUMPER, sort_keys=False, allow_unicode=True))
