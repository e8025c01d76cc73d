"""The training settings, validated. The config of a run is a Recipe plus where data, storage and machines are.

Light to import: no torch here, so that the command line answers at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationInfo, field_validator


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; people mean the number."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+", value):
        return float(value)
    return value


Float = Annotated[float, BeforeValidator(_number), Strict(), Field(allow_inf_nan=False)]
Int = Annotated[int, Strict()]
Bool = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]
Unavailable = Callable[[Any], bool]

OptimizerName = Literal["auto", "SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSProp"]
ScheduleName = Literal["cosine", "linear", "constant", "step", "one_cycle"]


class Settings(BaseModel):
    """A frozen group of settings without extra keys; `unavailable` names the values that come with a later version."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())
    unavailable: ClassVar[dict[str, Unavailable]] = {}

    @field_validator("*", mode="after")
    @classmethod
    def _refuse_unavailable(cls, value: Any, info: ValidationInfo) -> Any:
        refuses = cls.unavailable.get(info.field_name or "")
        if refuses and refuses(value):
            raise ValueError("not available yet")
        return value


class Recipe(Settings):
    """How to train: everything that the training loop itself reads."""

    unavailable: ClassVar[dict[str, Unavailable]] = {
        "task": lambda v: v != "classify",
        "epochs": lambda v: v == "auto",
        "batch": lambda v: v == -1,
        "schedule": lambda v: v in ("step", "one_cycle"),
        "amp": lambda v: v == "fp16",
        "deterministic": lambda v: v is True,
        "compile": lambda v: v is not False,
    }

    task: Literal["classify", "detect", "segment"] = Field(
        "classify", description="What to train: an image classifier, object detector or instance segmentation."
    )
    model: Text = Field(
        "resnet18",
        min_length=1,
        description="Name of a torchvision classification model, or package.module:function for one of your own.",
    )
    pretrained: Bool | Text = Field(
        False,
        description="Start from published weights (true), from a file of weights (a path), or from scratch (false).",
    )
    epochs: Literal["auto"] | Int = Field(300, description="Passes over the training set, at least 1.")
    patience: Int = Field(
        50, ge=0, description="Stop after this many epochs without a better metric; 0 never stops early."
    )
    batch: Int = Field(
        64, description="Images that one optimizer step sees, over all workers; -1 finds the most that fits."
    )
    imgsz: Int | None = Field(
        None, ge=8, le=8192, description="Height and width that the model sees, in pixels; null: the model's own (224)."
    )
    optimizer: OptimizerName = Field(
        "auto", description="Optimizer; auto: AdamW below 10,000 optimizer steps in all, SGD from there on."
    )
    lr: Float | None = Field(None, gt=0, description="First learning rate; null: 0.01 for SGD, 0.001 for the others.")
    lrf: Float = Field(0.01, ge=0, le=1, description="Last learning rate, as a fraction of the first.")
    momentum: Float = Field(0.9, ge=0, lt=1, description="Momentum of SGD and RMSProp, beta1 of the Adam family.")
    weight_decay: Float = Field(
        5e-4, ge=0, description="Weight decay per step, times lr for AdamW, NAdam and RAdam; not on biases and norms."
    )
    schedule: ScheduleName = Field("cosine", description="How the learning rate goes from its first to its last value.")
    warmup_epochs: Float = Field(
        3.0, ge=0, description="Epochs in which the learning rate rises from zero; at most a tenth of all are used."
    )
    label_smoothing: Float = Field(0.0, ge=0, lt=1, description="Share of the target that is spread over all classes.")
    amp: Literal["auto", "bf16", "fp16"] | Bool = Field(
        "auto", description="Mixed precision; auto: bf16 on GPUs that have it, else fp32; true: bf16."
    )
    fliplr: Float = Field(0.5, ge=0, le=1, description="Probability that a training image is mirrored left to right.")
    flipud: Float = Field(0.0, ge=0, le=1, description="Probability that a training image is mirrored top to bottom.")
    scale: Float = Field(
        0.5, ge=0, lt=1, description="Training images are zoomed by 1 - scale to 1 + scale, at a random place."
    )
    multi_scale: Float = Field(
        0.0,
        ge=0,
        lt=1,
        description="The size of whole batches varies by 1 - multi_scale to 1 + multi_scale, in multiples of 32.",
    )
    brightness: Float = Field(0.0, ge=0, le=1, description="Training images get a brightness of 1 - b to 1 + b.")
    contrast: Float = Field(0.0, ge=0, le=1, description="Training images get a contrast of 1 - c to 1 + c.")
    saturation: Float = Field(0.0, ge=0, le=1, description="Training images get a saturation of 1 - s to 1 + s.")
    hue: Float = Field(
        0.0, ge=0, le=0.5, description="The hue of training images turns by up to this part of the circle."
    )
    metric: Text | None = Field(
        None, description="The one metric that decides the best checkpoint and early stopping; null: the task's own."
    )
    seed: Int = Field(0, ge=0, lt=2**63, description="Seed of the weights, the order of the data and all augmentation.")
    deterministic: Bool = Field(False, description="Use only deterministic GPU kernels.")
    compile: Literal["auto"] | Bool = Field(False, description="Compile the model with torch.compile.")

    @field_validator("epochs")
    @classmethod
    def _epochs(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("Input should be greater than or equal to 1")
        return value

    @field_validator("batch")
    @classmethod
    def _batch(cls, value: int) -> int:
        if value < 1 and value != -1:
            raise ValueError("Input should be at least 1, or -1")
        return value

    @property
    def total_epochs(self) -> int:
        """`epochs` as a number (``auto`` is refused above)."""
        assert isinstance(self.epochs, int)
        return self.epochs
