"""Image classification: one label per image, cross-entropy over the logits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.contracts import Batch, DataInfo, Mode
from trainables.metrics import CLASSIFICATION, ClassificationMetric
from trainables.models import Normalization, build_classifier
from trainables.recipe import Recipe
from trainables.registry import did_you_mean

AUXILIARY_WEIGHT = 0.4
"""Weight of the auxiliary heads of googlenet and inception_v3 (Szegedy et al., 2015: 0.3 to 0.4)."""


class Classify:
    """The classification task. Raises ValueError for a metric that it does not produce."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.primary = recipe.metric or "top1"
        if self.primary not in CLASSIFICATION:
            raise ValueError(f"unknown metric {self.primary!r}: {did_you_mean(self.primary, CLASSIFICATION)}")
        self.mode: Mode = CLASSIFICATION[self.primary]
        self.classes: tuple[str, ...] = ()
        self.device = torch.device("cpu")
        self._normalize = _Normalize(Normalization())

    def build_model(self, info: DataInfo) -> nn.Module:
        self.classes = info.classes
        model, normalization = build_classifier(self.recipe, len(info.classes), info.imgsz)
        self._normalize = _Normalize(normalization)
        return model

    def prepare(self, batch: Batch, device: torch.device, train: bool) -> Batch:
        """The batch on the device with images (n, 3, H, W) float32, normalised as the weights expect it."""
        self.device = device
        images = self._normalize(batch.images.to(device, non_blocking=True))
        labels = batch.labels.to(device, non_blocking=True)
        return Batch(images, labels, batch.samples, batch.global_size)

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        outputs = model(batch.images)
        main, *auxiliary = (outputs,) if isinstance(outputs, Tensor) else outputs  # googlenet, inception_v3: main first
        loss = self._cross_entropy(main, batch)
        for head in auxiliary:
            loss = loss + AUXILIARY_WEIGHT * self._cross_entropy(head, batch)
        return {"loss": loss}

    def _cross_entropy(self, logits: Tensor, batch: Batch) -> Tensor:
        return functional.cross_entropy(logits.float(), batch.labels, label_smoothing=self.recipe.label_smoothing)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits (n, classes); softmax gives the scores."""
        logits: Tensor = model(batch.images)
        return logits

    def metrics(self) -> ClassificationMetric:
        return ClassificationMetric(self.classes, self.device)


class _Normalize:
    """(n, 3, H, W) uint8 in channels_last memory to normalised float32, in a buffer that the next call reuses.

    x * 1/(255 std) - mean/std, with both factors tiled to a row of W x 3: ten times faster than the obvious
    broadcast over the channel axis, which walks the memory in steps of three.
    """

    def __init__(self, normalization: Normalization) -> None:
        mean, std = torch.tensor(normalization.mean), torch.tensor(normalization.std)
        self._scale, self._shift = 1 / (255 * std), -mean / std
        self._buffer = self._row_scale = self._row_shift = torch.empty(0)

    def __call__(self, images: Tensor) -> Tensor:
        n, channels, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).reshape(n * height, width * channels)
        if self._buffer.shape[0] < len(rows) or self._buffer.shape[1:] != rows.shape[1:]:
            self._buffer = torch.empty(rows.shape, device=images.device)
            self._row_scale = self._scale.repeat(width).to(images.device)
            self._row_shift = self._shift.repeat(width).to(images.device)
        out = self._buffer[: len(rows)].copy_(rows)
        torch.addcmul(self._row_shift, out, self._row_scale, out=out)
        return out.view(n, height, width, channels).permute(0, 3, 1, 2)
