"""What a run draws, for any task: from the details of a validation, the first training batch and results.csv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.data import get_format
from orchestrator.data.images import load_stored
from orchestrator.plots.classes import class_rows, plot_classes, write_classes
from orchestrator.plots.confusion import plot_confusion as plot_confusion
from orchestrator.plots.curves import plot_results as plot_results
from orchestrator.plots.examples import Picture, Pictures, plot_predictions, plot_targets
from orchestrator.plots.mosaic import plot_batch as plot_batch
from orchestrator.plots.precision_recall import plot_precision_recall

if TYPE_CHECKING:
    from orchestrator.data.cache import Cache
    from trainables.contracts import Batch


def plot_details(details: Mapping[str, Any], classes: Sequence[str], folder: Path, pictures: Pictures) -> None:
    """Write what a validation found beyond scalars: FOLDER/per_class.csv and pictures below FOLDER/plots.

    details: of the task's metric; of a classifier the confusion matrix, of a detector the precision by recall and
    examples too, whose images `pictures` gives. Raises OSError.
    """
    plots = folder / "plots"
    rows = class_rows(details, classes)
    write_classes(rows, folder / "per_class.csv")
    plot_classes(rows, plots / "per_class.png")
    if "confusion" in details:
        plot_confusion(details["confusion"], classes, plots / "confusion_matrix.png")
    for kind, name in (("box", "pr_curve.png"), ("mask", "pr_curve_mask.png")):
        if curves := details.get("pr", {}).get(kind):
            plot_precision_recall(
                details["pr"]["recall"], curves, classes, plots / name, "boxes" if kind == "box" else "masks"
            )
    if examples := details.get("examples"):
        with_masks = any("masks" in example for example in examples)
        plot_predictions(examples, pictures, classes, plots / "predictions.png", with_masks)


def plot_train_batch(batch: Batch, classes: Sequence[str], out: Path) -> None:
    """Draw a training batch as the model sees it: titles of a classifier's images, else boxes and masks."""
    images = batch.images.permute(0, 2, 3, 1).numpy()
    if batch.targets is None:
        plot_batch(images, [classes[label] for label in batch.labels.tolist()], out)
        return
    boxes = [target.boxes.numpy() for target in batch.targets]
    labels = [target.labels.numpy() for target in batch.targets]
    masks = [None if target.masks is None else target.masks.numpy() for target in batch.targets]
    plot_targets(images, boxes, labels, masks, classes, out)


def pictures_of(cache: Cache) -> Pictures:
    """The images and labels of a cache; without pixels in it, they are decoded from where they are."""

    def picture(position: int) -> Picture:
        size = cache.full_size(position)
        if cache.stored.pixels:
            image = cache.image(position)
        else:
            try:
                content = get_format(cache.stored.format).load(cache.images[position].as_py())
                image = load_stored(content, cache.stored.side, cache.stored.fit).pixels
            except Exception:  # gone meanwhile, or the reader is the user's own: no reason to end a run
                image = np.full((*size, 3), 127, np.uint8)
        return Picture(str(cache.ids[position].as_py()), image, size, cache.objects(position))

    return picture
