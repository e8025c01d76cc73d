"""The training settings, validated. The config of a run is a Recipe plus where data, storage and machines are.

Light to import: no torch here, so that the command line answers at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationInfo,
    field_validator,
    model_validator,
)


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

MODELS_BY_TASK = {
    "classify": "resnet18",
    "detect": "ssdlite320_mobilenet_v3_large",
    "segment": "maskrcnn_mobilenet_v3_large_fpn",
}
"""What is trained where the config names no model."""
AUTO_EPOCHS = (300, 600, 1200)
"""The stages of ``epochs: auto``."""

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

    task: Literal["classify", "detect", "segment"] = Field(
        "classify", description="What to train: an image classifier, object detector or instance segmentation."
    )
    model: Text = Field(
        MODELS_BY_TASK["classify"],
        min_length=1,
        description="Name of a torchvision model of the task, timm/NAME for a classifier of timm, or "
        "package.module:function for one of your own. Default for detect: ssdlite320_mobilenet_v3_large, for segment: "
        "maskrcnn_mobilenet_v3_large_fpn.",
    )
    pretrained: Bool | Text = Field(
        False,
        description="Start from published weights (true), from a file of weights (a path, s3://, gs:// or https://), "
        "or from scratch (false).",
    )
    freeze: Int | list[Text] = Field(
        0,
        description="What of the model is not trained: its first N stages, or a list of name patterns as backbone.*.",
    )
    epochs: Literal["auto"] | Int = Field(
        300,
        description="Passes over the training set, at least 1; auto: 300, then 600, then 1200 while the metric still "
        "improves and does not overfit.",
    )
    time: Float | None = Field(None, gt=0, description="Stop after so many hours, over all sessions; null: no limit.")
    patience: Int = Field(
        50, ge=0, description="Stop after this many epochs without a better metric; 0 never stops early."
    )
    min_delta: Float = Field(
        0.0, ge=0, description="How much better the metric must be for `patience` to count it as better."
    )
    val_interval: Int = Field(
        1, ge=0, description="Validate after every so many epochs, and after the last; 0: never (then set patience: 0)."
    )
    batch: Int = Field(
        64,
        description="Images that one optimizer step sees, over all workers; -1 measures which size that fits is the "
        "fastest.",
    )
    micro_batch: Int | None = Field(
        None,
        ge=1,
        description="Most images that a worker takes through the model at once, gradients add up to the batch; null: "
        "its whole share, halved whenever memory runs out.",
    )
    memory: Int | Text | None = Field(
        None,
        description="Most memory that batch: -1 may plan with, per worker, as 6GB; null: 90 % of the GPU's, or 80 % of "
        "what the machine has free, divided by its workers.",
    )
    imgsz: Int | None = Field(
        None, ge=8, le=8192, description="Height and width that the model sees, in pixels; null: the model's own."
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
    clip_grad: Float = Field(
        0.0, ge=0, description="Longest that the gradient may be (its 2-norm over all parameters); 0: not clipped."
    )
    extend_lr: Literal["restart", "hold"] = Field(
        "restart",
        description="The learning rate of epochs that are added to a run (`extend`, epochs: auto): the schedule anew, "
        "or the last rate held.",
    )
    ema: Float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay of a moving average of the weights, as 0.9998, which is validated and saved beside them; "
        "0: none.",
    )
    sync_bn: Literal["auto"] | Bool = Field(
        "auto",
        description="Batch norms take their statistics over all workers; auto: where a worker has less than 16 images "
        "at a time.",
    )
    label_smoothing: Float = Field(0.0, ge=0, lt=1, description="Share of the target that is spread over all classes.")
    amp: Literal["auto", "bf16", "fp16"] | Bool = Field(
        "auto",
        description="Mixed precision; true: bf16 on GPUs that have it, fp16 on others, on a CPU bf16 where a "
        "measurement says that it is faster; auto: as true, but on a CPU not for runs of a few minutes.",
    )
    channels_last: Literal["auto"] | Bool = Field(
        "auto",
        description="Keep images as NHWC in memory; auto: with mixed precision on a GPU, as measured on a CPU.",
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
    deterministic: Bool = Field(
        False, description="Use only deterministic GPU kernels: the same weights from the same config and machine."
    )
    compile: Literal["auto"] | Bool = Field(
        False, description="Compile the model with torch.compile; auto: where a measurement says that it is faster."
    )

    @model_validator(mode="before")
    @classmethod
    def _model_by_task(cls, values: Any) -> Any:
        if isinstance(values, dict) and "model" not in values and str(values.get("task")) in MODELS_BY_TASK:
            return {**values, "model": MODELS_BY_TASK[values["task"]]}
        return values

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

    @field_validator("freeze")
    @classmethod
    def _freeze(cls, value: int | list[str]) -> int | list[str]:
        if isinstance(value, int) and value < 0:
            raise ValueError("Input should be greater than or equal to 0")
        return value

    @field_validator("label_smoothing")
    @classmethod
    def _label_smoothing(cls, value: float, info: ValidationInfo) -> float:
        task = info.data.get("task", "classify")
        if value and task != "classify":
            raise ValueError(f"task = {task}: labels are smoothed for task: classify only; leave it out")
        return value

    @field_validator("memory")
    @classmethod
    def _memory(cls, value: int | str | None) -> int | str | None:
        if value is not None and parse_bytes(value) <= 0:
            raise ValueError("must be a number of bytes, or a text like 500MB or 6GB")
        return value

    @field_validator("val_interval")
    @classmethod
    def _val_interval(cls, value: int, info: ValidationInfo) -> int:
        patience = info.data.get("patience", 0)
        if patience and not value:
            raise ValueError(f"patience = {patience} needs validation: set val_interval to 1 or more, or patience to 0")
        if info.data.get("epochs") == "auto" and not value:
            raise ValueError("epochs = auto needs validation: set val_interval to 1 or more, or epochs to a number")
        return value

    @property
    def total_epochs(self) -> int:
        """`epochs` as a number: for ``auto``, those of its first stage."""
        return AUTO_EPOCHS[0] if self.epochs == "auto" else self.epochs


def parse_bytes(value: int | str) -> int:
    """Bytes of 1000, "50GB" or "1.5 TB" (decimal units); 0 where it cannot be read."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", str(value).strip(), re.I)
    return int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ")) if match else 0
