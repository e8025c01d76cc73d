"""Image classification: one label per image, cross-entropy over the logits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainables.contracts import Batch, DataInfo, Mode
from trainables.metrics import CLASSIFICATION, ClassificationMetric
from trainables.models import build_classifier
from trainables.pixels import Normalization, Normalize
from trainables.recipe import Recipe
from trainables.registry import did_you_mean

AUXILIARY_WEIGHT = 0.4
"""Weight of the auxiliary heads of googlenet and inception_v3 (Szegedy et al., 2015: 0.3 to 0.4)."""


class Classify:
    """The classification task. Raises ValueError for a metric that it does not produce."""

    scores: Mapping[str, Mode] = CLASSIFICATION

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.primary = recipe.metric or "top1"
        if self.primary not in CLASSIFICATION:
            raise ValueError(f"unknown metric {self.primary!r}: {did_you_mean(self.primary, CLASSIFICATION)}")
        self.mode: Mode = CLASSIFICATION[self.primary]
        self.classes: tuple[str, ...] = ()
        self.device = torch.device("cpu")
        self.normalization = Normalization()
        self._normalize = Normalize(self.normalization)

    def build_model(self, info: DataInfo) -> nn.Module:
        self.classes = info.classes
        model, self.normalization = build_classifier(self.recipe, len(info.classes), info.imgsz)
        self._normalize = Normalize(self.normalization)
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
