"""The design on one page: the three contracts that the training loop stands between.

    Data  --Batch-->  fit()  --report-->  Runtime
                        |
                       Task

Data says where batches come from, Task what the model and its loss are, Runtime what the world around the loop is.
The same ``fit`` runs over every combination of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from trainables.collectives import World
    from trainables.pixels import Normalization

Mode = Literal["max", "min"]
Metrics = dict[str, Any]
"""One flat row of JSON values, as it is written to results.csv and MLflow."""


Polygons = Sequence[Sequence[float]]
"""The outlines of one instance's parts, each as x0, y0, x1, y1, ...; a pixel's centre lies at its corner + 0.5."""
RunLengths = Mapping[str, Any]
"""COCO's run-length encoding: {"size": [height, width], "counts": list of runs or compressed text}."""


@dataclass(frozen=True)
class Instance:
    """One labelled object of an image, as a reader yields it; coordinates as the `Sample` says.

    label: class index.
    box: x0, y0, x1, y1; None: that of the mask.
    mask: polygons, run lengths, or the place of an image whose pixels above zero are the object; None: a box only.
    crowd: a region of many objects, which is neither to be found nor to be missed.
    """

    label: int
    box: tuple[float, float, float, float] | None = None
    mask: Polygons | RunLengths | str | None = None
    crowd: bool = False


@dataclass(frozen=True)
class Sample:
    """One item of a data set, as a reader of a format yields it.

    id: stable name, unique in the data set (a path relative to its root); all randomness of the sample is keyed by it.
    split: "train", "val" or "test".
    image: where the bytes are (a path or URI), or the reader's own reference.
    stamp: changes when the bytes change (size and modification time, or an etag).
    label: class index, for classification; -1: none.
    objects: the labelled objects, empty for a background image; None: the data set has no objects.
    size: (height, width) of the image that the objects were drawn on, where the labels tell it.
    relative: coordinates are fractions of width and height, not pixels.
    """

    id: str
    split: str
    image: str
    stamp: str
    label: int = -1
    objects: tuple[Instance, ...] | None = None
    size: tuple[int, int] | None = None
    relative: bool = False


@dataclass(frozen=True)
class DataInfo:
    """What a model and a report need to know about a data set."""

    name: str
    fingerprint: str
    classes: tuple[str, ...]
    train: int
    val: int
    skipped: int
    imgsz: int
    """Height and width of the batches' images, in pixels."""
    largest: int = 0
    """Height and width of the largest batches of multi-scale; 0: imgsz."""
    objects: int = 0
    """The most objects of one training image."""
    masks: bool = False
    """Whether the objects have masks."""


@dataclass
class Targets:
    """The objects of one image as the model sees it.

    boxes: (n, 4) float32 xyxy, in pixels of the batch's image.
    labels: (n,) int64 class indices.
    crowd: (n,) bool.
    masks: (n, H, W) uint8, 1 on the object; None where the data set has boxes only.
    """

    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    masks: Tensor | None = None


@dataclass(frozen=True)
class Truth:
    """The objects of one validation image as they are evaluated: all of them, in pixels of the original image.

    size: (height, width) of the original image.
    boxes: (n, 4) float32 xyxy. labels: (n,) int64. crowd: (n,) bool.
    masks: COCO's compressed run lengths of each object; None where the data set has boxes only.
    left, top, scale: where the batch's image shows it: a point p of the original is at (p - (left, top)) * scale.
    """

    size: tuple[int, int]
    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    masks: Sequence[RunLengths] | None
    left: float
    top: float
    scale: float


@dataclass
class Batch:
    """One rank's share of a global batch. Its buffers are reused: valid until the next one is asked for.

    images: (n, 3, H, W) uint8 RGB in channels_last memory; n may be 0 where a short batch has no share for a rank.
    labels: (n,) int64 class indices; -1 where the data set has objects instead.
    samples: (n,) int64 positions in the data set (`Data.id_of` names them).
    global_size: samples of the whole global batch, over all ranks.
    targets: the objects of each image, for training; None in validation, and where the data set has none.
    truths: the same, for evaluation; None in training.
    """

    images: Tensor
    labels: Tensor
    samples: np.ndarray[Any, np.dtype[np.int64]]
    global_size: int
    targets: Sequence[Targets] | None = None
    truths: Sequence[Truth] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def split(self, size: int) -> Iterator[Batch]:
        """Cut into micro-batches of at most `size` samples; an empty share gives none."""
        for start in range(0, len(self), max(size, 1)):
            part = slice(start, start + size)
            targets, truths = self.targets and self.targets[part], self.truths and self.truths[part]
            yield Batch(self.images[part], self.labels[part], self.samples[part], self.global_size, targets, truths)


class Data(Protocol):
    """Where batches come from: a pure function of (config, epoch, step), the same for every number of ranks."""

    @property
    def info(self) -> DataInfo: ...

    @property
    def steps(self) -> int:
        """Global batches per epoch: ceil(train / batch)."""

    def train(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """This rank's share of each global batch of `epoch`, from step `first_step` on."""

    def validation(self) -> Iterator[Batch]:
        """This rank's share of the validation set: each sample once over all ranks. The ranks' counts may differ."""

    def id_of(self, sample: int) -> str:
        """The stable id of a sample position, for messages and records."""


class Metric(Protocol):
    """Accumulates a validation pass."""

    def update(self, output: Any, batch: Batch) -> None:
        """Take one batch's predictions. May stay on the device."""

    def reduce(self, world: World) -> None:
        """Make this rank's state that of the whole validation set. Collective: every rank calls it once."""

    def compute(self) -> Metrics:
        """The scalars, by name."""

    def details(self) -> Metrics:
        """What a report draws beyond scalars, as JSON values (a confusion matrix, per-class figures)."""


class Task(Protocol):
    """All that differs between classification, detection and segmentation."""

    primary: str
    """Name of the one metric that decides the best checkpoint, early stopping and ranking."""
    mode: Mode
    scores: Mapping[str, Mode]
    """The names of all metrics that `metrics()` computes, and which way each is better."""

    normalization: Normalization
    """Of the pixels, as the model's weights expect it; known once the model is built."""

    def build_model(self, info: DataInfo) -> nn.Module:
        """A new model for the data's classes; initialised from the current torch RNG."""

    def prepare(self, batch: Batch, device: torch.device, train: bool) -> Batch:
        """The batch on the device, as the model takes it: pixels normalised once, here."""

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Means over the batch's samples; "loss" is what is minimised."""

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """The outputs that `metrics()` takes and the predict command shows."""

    def metrics(self) -> Metric: ...


@dataclass
class State:
    """Everything a checkpoint holds. The tensors are the live ones: whoever keeps them copies them.

    progress: JSON values: epoch, samples consumed of it, running sums, early stopping, best so far.
    ema: the moving average of the weights, with the model's names; empty where there is none.
    metadata: texts that are kept in the files of the weights: "normalization", as JSON.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    progress: dict[str, Any]
    best: bool = field(default=False)
    ema: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


class Runtime(Protocol):
    """All that the loop knows of the world around it."""

    device: torch.device
    rank: int
    world_size: int

    def restore(self) -> Path | None:
        """The checkpoint folder to continue from, or None for a new run."""

    def report(self, metrics: Metrics, state: State | None) -> None:
        """Called by every rank at the same points: with a state after each epoch, without one for progress in between.

        Never blocks longer than copying the state.
        """

    def interrupted(self) -> bool:
        """Whether this process was asked to stop (signal, drain, stop of the trial). A local flag: never blocks."""


Reporter = Callable[[Metrics, "State | None"], None]
