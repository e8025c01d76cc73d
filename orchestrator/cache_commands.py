"""`orchestrator cache`: what the caches of this machine take; removing them; looking at every byte of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from orchestrator.config import ConfigError
from orchestrator.console import Screen
from orchestrator.data import store
from orchestrator.data.store import Entry, OtherVersion
from orchestrator.data.tiers import Room, disk_room, gigabytes, ram_room
from trainables.registry import did_you_mean

KEY_SHOWN = 12
"""Characters of a key in tables and messages: enough to name it by."""
DAY = 24 * 3600
STYLES = {"in use": "green", "being built": "cyan", "unfinished": "yellow"}
HEAD = ("key", "tier", "data set", "images", "side", "size", "state", "last used")
RIGHT = ("images", "side", "size")


class CacheScreen(Screen):
    """The screen of these commands."""

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Aligned columns, in the order of HEAD; wider than a narrow terminal rather than cut."""
        widths = [max(len(row[column]) for row in (HEAD, *rows)) for column in range(len(HEAD))]
        for row in (HEAD, *rows):
            cells = [
                text.rjust(width) if name in RIGHT else text.ljust(width)
                for text, width, name in zip(row, widths, HEAD, strict=True)
            ]
            style = "dim" if row is HEAD else STYLES.get(row[HEAD.index("state")], "")
            self._line(("  ".join(cells).rstrip(), style))

    def verdict(self, word: str, style: str, text: str) -> None:
        self.close()
        self._line((f"{word:<8}", style), f"  {text}")


def list_caches(folder: str | None) -> None:
    """Print a table of the caches, and what their places can still take."""
    places = _places(folder)
    found = {tier: store.entries(root) for tier, root in places.items()}
    rows = [_row(tier, entry) for tier, entries in found.items() for entry in entries]
    screen = CacheScreen()
    with screen:
        if not rows:
            screen.note(f"there are no caches in {_where(places)}")
            return
        screen.table(rows)
        screen.note("")
        for tier, entries in found.items():
            room = ram_room() if tier == "ram" else disk_room(places[tier], None)
            screen.note(f"{tier}: {_total(entries)} in {places[tier]}; room for {_limit(room)}")


def remove_caches(
    keys: Sequence[str], everything: bool, unfinished: bool, older_than: float | None, folder: str | None
) -> bool:
    """Remove the caches that are named, by their keys or by one of the others; whether all of them are gone."""
    if sum((bool(keys), everything, unfinished, older_than is not None)) != 1:
        raise ConfigError(
            "name caches by their keys, as orchestrator cache ls shows them, or give one of --all, --unfinished "
            "and --older-than DAYS"
        )
    places = _places(folder)
    entries = _all(places)
    if keys:
        entries = _named(keys, entries, places)
    elif not everything:  # what is in use is neither old nor unfinished
        entries = [entry for entry in entries if _state(entry) in ("ready", "unfinished")]
    if unfinished:
        entries = [entry for entry in entries if not entry.ready]
    if older_than is not None:
        entries = [entry for entry in entries if entry.used <= time.time() - older_than * DAY]
    freed, kept = 0, 0
    screen = CacheScreen()
    with screen:
        for entry in entries:
            if obstacle := _remove(entry):
                kept += 1
                screen.verdict("kept", "yellow", f"{_title(entry)}: {obstacle}")
            else:
                freed += entry.bytes
                screen.verdict("removed", "", _title(entry))
        screen.note(f"freed {gigabytes(freed)}" if entries else f"there is nothing to remove in {_where(places)}")
    return not kept


def verify_caches(keys: Sequence[str], folder: str | None) -> bool:
    """Read every shard and compare its hash, and remove what is damaged; whether all is sound."""
    places = _places(folder)
    entries = _all(places)
    if keys:
        entries = _named(keys, entries, places)
    sound = True
    screen = CacheScreen()
    with screen:
        if not entries:
            screen.note(f"there are no caches in {_where(places)}")
        for entry in entries:
            if entry.is_built and not entry.ready:
                screen.verdict("skipped", "cyan", f"{_title(entry)}: it is being built")
                continue
            screen.waiting(f"reading {_title(entry)}")
            try:
                damaged = store.verify(entry)
            except OtherVersion as error:
                screen.verdict("skipped", "yellow", f"{_title(entry)}: {error}")
                continue
            if not damaged:
                screen.verdict("ok", "green", _title(entry) + ("" if entry.ready else ", unfinished"))
                continue
            sound = False
            screen.verdict("damaged", "red", f"{_title(entry)}: {', '.join(damaged)}")
            screen.note(f"          {_discard(entry, damaged)}")
    return sound


def _discard(entry: Entry, damaged: list[str]) -> str:
    """Remove damaged files; what came of it, in words."""
    try:
        if store.discard(entry.folder, damaged):
            return "removed; the next run that needs this cache makes just these files again"
    except OSError as error:
        return f"they cannot be removed: {error}"
    return "the cache is in use: verify it again when the run has ended, to remove them"


def _places(folder: str | None) -> dict[str, Path]:
    """Where to look, by tier: the folder that was named, else those of this user."""
    if folder is None:
        return {"disk": store.disk_root(None), "ram": store.ram_root()}
    root = store.disk_root(folder)
    if not root.is_dir():
        raise ConfigError(f"--dir {folder}: there is no such folder (looked for {root})")
    return {"disk": root}


def _where(places: dict[str, Path]) -> str:
    return " and ".join(map(str, places.values()))


def _all(places: dict[str, Path]) -> list[Entry]:
    return [entry for root in places.values() for entry in store.entries(root)]


def _named(keys: Sequence[str], entries: list[Entry], places: dict[str, Path]) -> list[Entry]:
    """The caches with these keys, or beginnings of keys. Raises ConfigError where one is unknown or ambiguous."""
    chosen: list[Entry] = []
    known = {entry.key for entry in entries}
    for key in keys:
        matches = {name for name in known if key and name.startswith(key)}
        if key in matches:
            matches = {key}
        if not matches:
            hint = did_you_mean(key, known) if known else "there are none"
            raise ConfigError(f"no cache in {_where(places)} has the key {key!r}: {hint}")
        if len(matches) > 1:
            raise ConfigError(f"{len(matches)} keys begin with {key!r}: {', '.join(sorted(matches))}; write more of it")
        chosen += [entry for entry in entries if entry.key in matches and entry not in chosen]
    return chosen


def _row(tier: str, entry: Entry) -> tuple[str, ...]:
    return (
        entry.key[:KEY_SHOWN],
        tier,
        entry.name or "?",
        f"{entry.images:,}" if entry.name else "?",
        str(entry.side) if entry.side else "labels" if entry.name else "?",
        gigabytes(entry.bytes),
        _state(entry),
        f"{datetime.fromtimestamp(entry.used):%Y-%m-%d %H:%M}",
    )


def _state(entry: Entry) -> str:
    if entry.is_built and not entry.ready:
        return "being built"
    if entry.is_read or entry.is_built:
        return "in use"
    return "ready" if entry.ready else "unfinished"


def _remove(entry: Entry) -> str:
    """Remove a cache; in words, why it is still there."""
    try:
        if store.remove(entry.folder):
            return ""
    except OSError as error:
        return f"it cannot be removed: {error}"
    return f"it is {_state(entry)}" if entry.is_read or entry.is_built else "some of its files cannot be removed"


def _title(entry: Entry) -> str:
    return f"{entry.key[:KEY_SHOWN]}  {entry.name or '?'}, {gigabytes(entry.bytes)}"


def _total(entries: Sequence[Entry]) -> str:
    count = len(entries)
    return f"{gigabytes(sum(entry.bytes for entry in entries))} in {count} cache{'s' * (count != 1)}"


def _limit(room: Room) -> str:
    return f"{gigabytes(room.bytes)} more ({room.limit})"
