"""`orchestrator check` as a user types it: exit codes, what it prints and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

from tests.colours import write_colours
from tests.e2e.shell import Shell

SLOW = """
import time
import numpy as np
from orchestrator.data import Format, Source
from trainables.contracts import Sample

def read(location):
    return Source("slow", ("a", "b"), (Sample(f"{i:04d}", "train", str(i), "", i % 2) for i in range(1200)))

def load(image):
    time.sleep(0.01)
    return np.full((8, 8, 3), int(image) % 256, np.uint8)

FORMAT = Format(read, load)
"""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_sound_data_set(shell: Shell) -> None:
    write_colours(shell.folder / "colours")
    done = shell.run("check", "colours")
    assert done.code == 0, done
    assert "check-colours/check.html" in done.out
    assert done.err == ""
    assert "\x1b" not in done.out
    assert names(shell.folder / "check-colours") == {"check.html", "check.json"}


def test_flaws_that_a_run_leaves_out_are_no_failure(shell: Shell) -> None:
    write_colours(shell.folder / "colours", {"train": (60, 60, 60)})
    (shell.folder / "colours" / "train" / "red" / "empty.png").touch()
    done = shell.run("check", "colours", "--out", "found/here")
    assert done.code == 0, done
    assert "left out  1 empty image file: train/red/empty.png" in done.out
    content = json.loads((shell.folder / "found" / "here" / "check.json").read_text())
    assert content["images"] == {"train": 181}
    assert content["refused"] is None


def test_a_set_that_a_run_would_refuse(shell: Shell) -> None:
    """All is told and written before the last line says so; an override of the config decides."""
    write_colours(shell.folder / "colours", {"train": (10, 10, 10), "val": (2, 2, 2)})
    (shell.folder / "colours" / "val" / "blue" / "empty.png").touch()
    shell.write("config.yaml", "data: colours\nmodel: resnet18\n")
    done = shell.run("check", "config.yaml")
    assert done.code == 2
    assert "1 empty image file: val/blue/empty.png" in done.out
    assert done.err.splitlines()[-1].startswith("orchestrator: a run refuses this data: 1 of 37 images")
    assert names(shell.folder / "check-colours") == {"check.html", "check.json"}
    assert shell.run("check", "config.yaml", "max_bad_fraction=0.1").code == 0


def test_wrong_input(shell: Shell) -> None:
    for arguments, told in (
        (["nowhere"], "there is no file or folder nowhere"),
        (["missing.yaml"], "missing.yaml"),
        (["digits", "--format", "yolow"], "did you mean yolo"),
        (["digits", "lr=1"], "lr=1"),
    ):
        done = shell.run("check", *arguments)
        assert done.code == 2, done
        assert done.err.startswith("orchestrator: ")
        assert told in done.err
        assert "Traceback" not in done.err
    assert not [path for path in shell.folder.iterdir() if path.name.startswith("check")]


def test_ctrl_c_leaves_nothing(shell: Shell) -> None:
    shell.write("slow.py", SLOW)
    before = names(shell.folder) | {"__pycache__"}
    command = shell.start("check", "anywhere", "--format", "slow:FORMAT")
    command.wait_until(lambda: "checking: " in command.output)
    command.press_ctrl_c()
    done = command.wait(20)
    assert done.code == 130, done
    assert done.err == "orchestrator: interrupted\n"
    assert names(shell.folder) <= before


def test_real_photos(shell: Shell, test_data: Path) -> None:
    done = shell.run("check", str(test_data / "grocery_fruit" / "dataset"))
    assert done.code == 0, done
    assert "note      3 classes without validation samples: Nectarine, Papaya, Plum" in done.out
    content = json.loads((shell.folder / "check-grocery_fruit" / "check.json").read_text())
    assert content["images"] == {"train": 962, "val": 111, "test": 448}
    assert len(content["classes"]) == 19
    assert (shell.folder / "check-grocery_fruit" / "check.html").stat().st_size < 6_000_000
