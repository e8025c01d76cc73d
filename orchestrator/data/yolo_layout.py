"""Where a YOLO data set has its images, and what its classes are: from a data.yaml, or from its folders' names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from orchestrator.data import SPLITS
from orchestrator.data.files import Files

YAML = (".yaml", ".yml")
USUAL = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
"""The names that win where a folder has several such files."""


@dataclass(frozen=True)
class Layout:
    name: str
    names: tuple[str, ...]
    """Of the classes."""
    told_by: str
    """The place of the file that the names come from."""
    root: Files
    """What ids and listed image paths are relative to."""
    splits: dict[str, list[str]]
    """Places of folders, and of text files with image paths."""


def find_layout(files: Files) -> Layout:
    """The layout of a location. Raises ValueError that says what is wrong with it, or what to write."""
    if found := _yaml_file(files):
        return _from_yaml(*found)
    if splits := _split_folders(files):
        return _from_folders(files, splits)
    raise ValueError(f"{files.location} has no data.yaml with names and train, and no images/ beside labels/")


def detect(files: Files) -> str | None:
    if found := _yaml_file(files, any_file=True):
        return f"there is a {found[1]} with names"
    folders = _split_folders(files)
    train = folders.get("train", "").partition("images")
    if folders and _has_text(files, f"{train[0]}labels{train[2]}"):
        return "there are images/ beside labels/ with text files"
    return None


def _yaml_file(files: Files, any_file: bool = False) -> tuple[Files, str] | None:
    """The folder and the name of the data.yaml of a location. Of several, ValueError asks for one unless `any_file`."""
    name = files.location.rpartition("/")[2]
    if name.lower().endswith(YAML) and not files.is_dir():
        return files.folder, name
    if not files.is_dir():
        return None
    found = [e.name for e in files.entries() if not e.is_dir and e.suffix in YAML and _describes(files, e.name)]
    usual = [name for name in USUAL if name in found]
    if len(found) > 1 and not usual and not any_file:
        raise ValueError(f"{files.location} has several descriptions ({', '.join(found)}): name one of the files")
    return next(((files, name) for name in usual + found), None)


def _describes(files: Files, name: str) -> bool:
    """Whether a YAML file is one of ours; a data.yaml may be broken, so that reading it says where."""
    try:
        keys = _load(files, name).keys()
    except ValueError:
        return name in USUAL
    return bool(keys & {"train", "val"}) and ("names" in keys or name in USUAL)


def _load(files: Files, name: str) -> dict[Any, Any]:
    place = files.place(name)
    try:
        content = yaml.safe_load(files.read_text(name))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ValueError(f"{place}{line}: invalid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{place} is not a mapping: write the keys path, train, val and names")
    return content


def _from_yaml(folder: Files, name: str) -> Layout:
    content, place = _load(folder, name), folder.place(name)
    names = _names(content.get("names"), place)
    if content.get("nc", len(names)) != len(names):
        raise ValueError(f"{place}: nc is {content['nc']}, but there are {len(names)} names")
    path = content.get("path") or ""
    if not isinstance(path, str):
        raise ValueError(f"{place}: path is {path!r}: write the folder that train and val are relative to")
    root = folder.below(path) if path and folder.is_dir(path) else folder
    splits = {}
    for split in SPLITS:
        listed = content.get(split) or []
        found = [_find(item, f"{place}: {split}", root, folder) for item in _texts(listed, f"{place}: {split}")]
        if missing := [tried for where, tried in found if where is None]:
            if split == "test":  # published files name one that few have
                continue
            raise ValueError(f"{place}: {split} does not exist; looked for {', '.join(missing[0])}")
        if found:
            splits[split] = [where for where, _ in found if where]
    if not splits:
        raise ValueError(f"{place} names no images: write train, and val where there is one")
    stem = name.rpartition(".")[0]
    return Layout(root.name if name in USUAL else stem, names, place, root, splits)


def _find(path: str, what: str, root: Files, folder: Files) -> tuple[str | None, list[str]]:
    """The place of a path of data.yaml (None: there is none), and all places that were looked at."""
    inside = path
    while inside.startswith("../"):  # as labelling sites write it, for a folder that is not the file's
        inside = inside[3:]
    tried = list(dict.fromkeys(base.place(p.rstrip("/")) for base in (root, folder) for p in (path, inside)))
    for place in tried:
        if entry := root.entry(place):
            if not entry.is_dir and entry.suffix != ".txt":
                raise ValueError(f"{what}: {place} is neither a folder nor a .txt file with image paths")
            return place, tried
    return None, tried


def _texts(value: Any, what: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if wrong := [v for v in values if not isinstance(v, str) or not v]:
        raise ValueError(f"{what} is {wrong[0]!r}: write a folder, a text file of image paths, or a list of these")
    return values


def _names(value: Any, place: str) -> tuple[str, ...]:
    if not value or not isinstance(value, list | dict):
        raise ValueError(f"{place} has no names of classes: write them as `names: [cat, dog]`")
    if isinstance(value, dict):
        keys = {str(key): key for key in value}
        if missing := [i for i in range(len(value)) if str(i) not in keys]:
            raise ValueError(
                f"{place}: names lacks the index {missing[0]}: {len(value)} names are 0 to {len(value) - 1}"
            )
        value = [value[keys[str(i)]] for i in range(len(value))]
    for i, name in enumerate(value):
        if isinstance(name, bool) or not isinstance(name, str | int | float) or not str(name).strip():
            raise ValueError(
                f"{place}: names[{i}] is {name!r}: write a text, in quotes where YAML reads something else"
            )
    return _unique([str(name) for name in value], f"{place}: names")


def _unique(names: list[str], what: str) -> tuple[str, ...]:
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        if first.setdefault(name, i) != i:
            raise ValueError(f"{what} has {name!r} twice (index {first[name]} and {i}): every class needs its own")
    return tuple(names)


# ------------------------------------------------------------------------------------- without a data.yaml


def _split_folders(files: Files) -> dict[str, str]:
    """Image folders by split, as images/train (or images) beside labels, or as train/images beside train/labels."""
    if not files.is_dir():
        return {}
    top = {entry.name for entry in files.entries() if entry.is_dir}
    if {"images", "labels"} <= top:
        below = {entry.name for entry in files.entries("images") if entry.is_dir}
        found = {split: f"images/{name}" for split, name in _named_splits(below)}
        return found if "train" in found else {"train": "images"}
    found = {}
    for split, name in _named_splits(top):
        if {"images", "labels"} <= {entry.name for entry in files.entries(name) if entry.is_dir}:
            found[split] = f"{name}/images"
    return found if "train" in found else {}


def _named_splits(names: set[str]) -> Iterator[tuple[str, str]]:
    for split, words in SPLITS.items():
        yield from [(split, name) for name in sorted(names) if name.lower() in words][:1]


def _has_text(files: Files, path: str) -> bool:
    """Whether there is a text file in a folder or in the first folder in it."""
    entries = files.entries(path) if files.is_dir(path) else []
    inner = next((files.entries(entry.path) for entry in entries if entry.is_dir), [])
    return any(entry.suffix == ".txt" for entry in [*entries, *inner])


def _from_folders(files: Files, splits: dict[str, str]) -> Layout:
    train = splits["train"].partition("images")[0]
    for path in dict.fromkeys(
        ("classes.txt", "labels/classes.txt", f"{train}classes.txt", f"{train}labels/classes.txt")
    ):
        if files.is_file(path):
            names = [line.strip() for line in files.read_text(path).splitlines() if line.strip()]
            classes = _unique(names, files.place(path))
            places = {split: [files.place(folder)] for split, folder in splits.items()}
            return Layout(files.name, classes, files.place(path), files, places)
    raise ValueError(
        f"{files.location} has images and labels, but the names of the classes are not known: write "
        f"{files.place('classes.txt')} with a name per line in the order of their indices, or a data.yaml with "
        "names, train and val"
    )
