"""The table of what can be wrong with a data set, and the search for what no single image shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.checking.counts import Counts, without_labels
from orchestrator.checking.duplicates import Groups, copies, lookalikes
from orchestrator.checking.scan import EXAMPLES, Example, Found, Scan
from orchestrator.data import SPLITS
from orchestrator.data.manifest import Manifest

Level = Literal["left out", "warning", "note"]
"""What a run leaves out and lists; what makes its figures worse or wrong; what is worth knowing."""

RARE = 20
"""A class is rare where the most common one has so many times its training samples."""


@dataclass(frozen=True)
class Kind:
    """title: "{n}" is the number; the part after "|" is its plural. advice: what it means, and what to do."""

    level: Level
    title: str
    advice: str


KINDS = {
    "missing_image": Kind(
        "left out", "{n} image without a file|{n} images without a file", "A broken link, or a name in the labels only."
    ),
    "empty_image": Kind("left out", "{n} empty image file|{n} empty image files", "Copy them again, or remove them."),
    "broken_image": Kind(
        "left out", "{n} image that cannot be decoded|{n} images that cannot be decoded", "Repair or remove them."
    ),
    "unread_image": Kind(
        "left out", "{n} image without usable labels|{n} images without usable labels", "Repair their labels."
    ),
    "unread_label": Kind(
        "left out", "{n} label that fits no image|{n} labels that fit no image", "Nothing is trained with them."
    ),
    "dropped_object": Kind(
        "left out",
        "{n} object without a usable box or mask|{n} objects without a usable box or mask",
        "Draw them again, or remove them from the labels.",
    ),
    "dropped_mask": Kind(
        "left out", "{n} mask that cannot be used|{n} masks that cannot be used", "The objects keep their boxes."
    ),
    "duplicate_across": Kind(
        "warning",
        "{n} picture in more than one split|{n} pictures in more than one split",
        "Files with the same bytes. What is trained on cannot be validated or tested with: keep each in one split.",
    ),
    "lookalike_across": Kind(
        "warning",
        "{n} picture that looks the same in more than one split|{n} pictures that look the same in more than one split",
        "Saved again or resized, or frames of one film. Keep each in one split.",
    ),
    "contradiction": Kind(
        "warning",
        "{n} picture with different labels in its copies|{n} pictures with different labels in their copies",
        "At least one of the labels is wrong.",
    ),
    "repeated_object": Kind(
        "warning",
        "{n} object labelled more than once|{n} objects labelled more than once",
        "The same box and class stands there before, so it counts twice in loss and metrics.",
    ),
    "two_classes": Kind(
        "warning",
        "{n} box with several classes|{n} boxes with several classes",
        "The same box stands there before with another class: at least one of them is wrong.",
    ),
    "empty_class": Kind(
        "warning", "{n} class without samples|{n} classes without samples", "Remove the name, or add samples."
    ),
    "untrained_class": Kind(
        "warning",
        "{n} class without training samples|{n} classes without training samples",
        "It occurs in validation or test, where it can only be missed.",
    ),
    "unlabelled_image": Kind(
        "warning", "{n} image without a class|{n} images without a class", "Nothing can be learned from it."
    ),
    "duplicate": Kind(
        "warning",
        "{n} picture stored more than once|{n} pictures stored more than once",
        "Files with the same bytes in one split: they weigh more than others.",
    ),
    "lookalike": Kind(
        "note",
        "{n} picture that looks the same as another|{n} pictures that look the same as others",
        "In one split: saved again or resized, or frames of one film.",
    ),
    "label_remark": Kind(
        "note",
        "{n} image whose labels were drawn on another size|{n} images whose labels were drawn on another size",
        "The size in the labels is not that of the file.",
    ),
    "box_outside": Kind(
        "note",
        "{n} object that reaches beyond its image|{n} objects that reach beyond their image",
        "By more than 1 % of its width or height. Boxes and masks are clipped to the image.",
    ),
    "tiny_object": Kind(
        "note",
        "{n} tiny object|{n} tiny objects",
        "Less than 1 % of the image wide or high: check that it is no slip, and that imgsz shows it.",
    ),
    "orientation_unclear": Kind(
        "note",
        "{n} labelled photo with an EXIF orientation|{n} labelled photos with an EXIF orientation",
        "The labels do not tell whether they were drawn before or after turning; they are taken as drawn on the pixels "
        "as stored. Where the pictures show otherwise, set exif_labels: upright.",
    ),
    "unvalidated_class": Kind(
        "note",
        "{n} class without validation samples|{n} classes without validation samples",
        "Validation says nothing about it.",
    ),
    "rare_class": Kind(
        "note",
        "{n} rare class|{n} rare classes",
        f"The most common class has more than {RARE} times as many training samples.",
    ),
    "background": Kind(
        "note",
        "{n} image without objects|{n} images without objects",
        "Training takes them as background. Where objects were merely not labelled, the model learns to miss them.",
    ),
    "no_validation": Kind(
        "note", "no validation split", "A run holds back val_fraction of each class; copies may end up on both sides."
    ),
}
"""In the order of the report."""


@dataclass(frozen=True)
class Flaw:
    """One kind of flaw in a data set. `count`: all of them; `examples`: the first ones."""

    kind: str
    count: int
    examples: list[Example]

    @property
    def level(self) -> Level:
        return KINDS[self.kind].level

    @property
    def advice(self) -> str:
        return KINDS[self.kind].advice

    @property
    def title(self) -> str:
        titles = KINDS[self.kind].title.split("|")
        return titles[0 if self.count == 1 else -1].format(n=f"{self.count:,}")

    def to_json(self, manifest: Manifest) -> dict[str, Any]:
        ids, splits = manifest.table["id"], manifest.table["split"]
        examples = [
            {
                "ids": [ids[position].as_py() for position in example.positions],
                "splits": [splits[position].as_py() for position in example.positions],
                "detail": example.detail,
                "box": None if example.box is None else [round(value, 2) for value in example.box],
            }
            for example in self.examples
        ]
        head = {"kind": self.kind, "level": self.level, "title": self.title, "advice": self.advice}
        return head | {"count": self.count, "examples": examples}


def find_flaws(manifest: Manifest, counts: Counts, seen: Scan) -> list[Flaw]:
    """All flaws in the order of KINDS."""
    found = dict(seen.found)
    for kind, example in [
        *_of_reader(manifest),
        *_of_classes(manifest, counts),
        *_of_images(manifest),
        *_of_copies(manifest, seen),
    ]:
        found.setdefault(kind, Found()).add(example)
    return [Flaw(kind, found[kind].count, found[kind].examples) for kind in KINDS if kind in found]


def _of_reader(manifest: Manifest) -> Iterator[tuple[str, Example]]:
    for issue in manifest.issues:
        yield f"unread_{issue.kind}", Example((), f"{issue.id}: {issue.reason}")


def _of_classes(manifest: Manifest, counts: Counts) -> Iterator[tuple[str, Example]]:
    samples = counts.objects if manifest.has_objects else counts.with_class
    train, val, _ = samples
    has_val = counts.images[list(SPLITS).index("val")] > 0
    for i, name in enumerate(manifest.classes):
        if not samples[:, i].any():
            yield "empty_class", Example((), name)
        elif not train[i]:
            yield "untrained_class", Example((), name)
        else:
            if has_val and not val[i]:
                yield "unvalidated_class", Example((), name)
            if train.max() > RARE * train[i]:
                yield "rare_class", Example((), f"{name} ({train[i]:,} of {train.sum():,})")
    if not has_val:
        yield "no_validation", Example(())


def _of_images(manifest: Manifest) -> Iterator[tuple[str, Example]]:
    for kind, positions in zip(("background", "unlabelled_image"), without_labels(manifest), strict=True):
        for position in positions.tolist():
            yield kind, Example((position,))


def _of_copies(manifest: Manifest, seen: Scan) -> Iterator[tuple[str, Example]]:
    """Groups of the same picture; of look-alikes, one sample stands for all with the same bytes."""
    splits = manifest.table["split"].to_numpy(zero_copy_only=False)
    exact = copies(seen.digests, seen.fine)
    repeated = {position for group in exact for position in group[1:]}
    similar = [[p for p in group if p not in repeated] for group in lookalikes(seen.looks, seen.fine)]
    similar = [group for group in similar if len(group) > 1]
    for name, groups in (("duplicate", exact), ("lookalike", similar)):
        for group in groups:
            across = len({splits[position] for position in group}) > 1
            yield f"{name}_across" if across else name, _example(group)
    for group in _contradictions(seen, [*exact, *similar]):
        yield "contradiction", _example(group)


def _contradictions(seen: Scan, groups: Groups) -> Groups:
    return [group for group in groups if len(set(seen.answers[group].tolist())) > 1]


def _example(group: list[int]) -> Example:
    return Example(tuple(group[:EXAMPLES]), f"{len(group):,} files")
