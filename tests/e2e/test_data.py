"""The data plane from the command line: killed builds, memory that is left behind, buckets, full disks."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer

from orchestrator.data import store
from orchestrator.launch import cpu_count
from tests.colours import write_colours
from tests.e2e.shell import Shell, summary
from tests.results import received

SLOW_READER = """
import time
from pathlib import Path
from orchestrator.data import Format, imagefolder

def load(image):
    time.sleep(SECONDS)
    return Path(image).read_bytes()

FORMAT = Format(imagefolder.read, load)
"""


def slow_reader(shell: Shell, seconds: float) -> str:
    shell.write("slowly.py", SLOW_READER.replace("SECONDS", str(seconds)))
    return "slowly:FORMAT"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_colours(tmp_path / "pictures", {"train": (180, 180, 180), "val": (20, 20, 20)})


def test_a_build_that_was_killed_goes_on(shell: Shell, folder: Path) -> None:
    caches = shell.folder / "caches"
    settings: dict[str, Any] = {"data": str(folder), "imgsz": 16, "cache_dir": str(caches), "epochs": 1}
    config = shell.config(**settings, format=slow_reader(shell, 0.05))
    command = shell.start("train", config, "name=killed")
    command.wait_until(lambda: len(list(caches.glob("*/shard-*.json"))) >= 2)
    command.kill()
    assert not list(caches.glob("*/index.json"))
    assert not (shell.storage / "pictures").exists()
    kept = {path.name: path.stat().st_ino for path in caches.glob("*/shard-*.arrow")}
    assert 2 <= len(kept) < 8

    listed = shell.run("cache", "ls", "--dir", str(caches))
    assert "unfinished" in listed.out
    done = shell.run("train", config, "name=second", "record_samples=true")
    assert done.code == 0, done.err
    shards = {path.name: path.stat().st_ino for path in caches.glob("*/shard-*.arrow")}
    assert len(shards) == 8
    assert {name: shards[name] for name in kept} == kept, "what was finished is not decoded again"
    verified = shell.run("cache", "verify", "--dir", str(caches))
    assert verified.code == 0
    first = next(iter(received(shell.storage / "pictures" / "second").batches.values()))
    assert len(set(first)) == len(first)


@pytest.mark.slow
def test_ctrl_c_while_building_leaves_nothing_but_finished_shards(shell: Shell, folder: Path) -> None:
    caches = shell.folder / "caches"
    config = shell.config(data=str(folder), imgsz=16, cache_dir=str(caches), format=slow_reader(shell, 0.05))
    command = shell.start("train", config)
    command.wait_until(lambda: list(caches.glob("*/shard-*.json")))
    command.press_ctrl_c()
    assert command.wait().code == 130
    assert not (shell.storage / "pictures").exists()
    assert not list(caches.glob("*/.*")), "no half-written files"


@pytest.mark.slow
def test_a_killed_driver_leaves_memory_until_the_next_start(shell: Shell, folder: Path) -> None:
    """The ram tier, and what Ray spilled."""
    config = shell.config(data=str(folder), imgsz=16, cache="ram", model="mymodels:slow", epochs=50)
    command = shell.start("train", config, "name=killed", STEP_SECONDS="0.5")
    run = shell.storage / "pictures" / "killed"
    command.wait_until((run / "results.csv").exists)
    [held] = (path for path in store.ram_root().iterdir() if path.is_dir())
    assert list(held.glob("shard-*.arrow"))
    another = shell.run("train", shell.config(epochs=1), "name=meanwhile")
    assert another.code == 0, another.err
    assert list(held.glob("shard-*.arrow")), "it is in use"
    os.kill(command.process.pid, signal.SIGKILL)
    command.kill()
    spilled = Path(os.environ.get("TMPDIR", "/tmp")) / "ray" / "session_2020-01-01_00-00-00_000000_1"
    (spilled / "ray_spilled_objects_x").mkdir(parents=True)
    assert held.exists()
    assert shell.run("train", shell.config(epochs=1), "name=next").code == 0
    assert not held.exists()
    assert not list(store.ram_root().glob("*")) if store.ram_root().exists() else True
    assert not list(spilled.iterdir())
    spilled.rmdir()


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def test_a_bucket_is_trained_on_like_the_folder(shell: Shell, folder: Path, endpoint: str) -> None:
    access: dict[str, Any] = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-user",
        "AWS_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="key",
        aws_secret_access_key="secret-of-the-user",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="images")
    for path in folder.rglob("*.png"):
        client.upload_file(str(path), "images", f"pictures/{path.relative_to(folder)}")
    runs = {}
    for name, data in {"local": str(folder), "remote": "s3://images/pictures"}.items():
        config = shell.config(data=data, imgsz=16, record_samples=True, name=name)
        done = shell.run("train", config, **access)
        assert done.code == 0, done.err
        runs[name] = received(shell.storage / "pictures" / name)
    assert runs["remote"].pixels == runs["local"].pixels
    again = shell.run("train", shell.config(data="s3://images/pictures", imgsz=16, name="again"), **access)
    assert "found on disk" in again.out
    run = shell.storage / "pictures" / "remote"
    assert not [path for path in run.rglob("*") if path.is_file() and b"secret-of-the-user" in path.read_bytes()]
    gone = shell.run("train", shell.config(data="s3://elsewhere/pictures", imgsz=16), **access)
    assert gone.code == 2
    assert "s3://elsewhere/pictures" in gone.err


@pytest.mark.slow
def test_fraction_is_told_and_lies_within_the_larger_one(shell: Shell, folder: Path) -> None:
    seen = []
    for fraction in (0.1, 0.2):
        config = shell.config(data=str(folder), imgsz=16, fraction=fraction, record_samples=True, epochs=1)
        done = shell.run("train", config, f"name=part-{fraction}")
        assert done.code == 0, done.err
        assert f"{round(540 * fraction)} of 540 (fraction {fraction})" in done.out
        record = received(shell.storage / "pictures" / f"part-{fraction}")
        seen.append({name for batch in record.batches.values() for name in batch})
        assert len(record.validation) == 60
        kept = yaml.safe_load((shell.storage / "pictures" / f"part-{fraction}" / "config.yaml").read_text())
        assert kept["fraction"] == fraction
        assert summary(shell.storage / "pictures" / f"part-{fraction}")["dataset"]["train"] == 540 * fraction
    assert seen[0] < seen[1]
    assert [sum(f"/{name}/" in id_ for id_ in seen[0]) for name in ("blue", "green", "red")] == [18] * 3


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("cache", ["disk", "auto"])
def test_a_disk_that_fills_up_while_it_is_built(shell: Shell, folder: Path, tmp_path: Path, cache: str) -> None:
    """The estimate looks at a few images; here the large ones are others."""
    import subprocess

    import cv2
    import numpy as np

    for number in range(160):
        path = folder / "train" / "red" / f"0big{number}.png"
        assert cv2.imwrite(str(path), np.random.default_rng(number).integers(0, 255, (72, 72, 3), np.uint8))
    disk = tmp_path / "small"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        config = shell.config(data=str(folder), imgsz=64, cache_dir=str(disk / "caches"), cache=cache, epochs=1)
        done = shell.run("train", config, "name=full")
        assert not list(disk.rglob("*.arrow"))
        if cache == "disk":
            assert done.code == 2
            assert "cache = disk" in done.err
            assert "Traceback" not in done.err
            assert not (shell.storage / "pictures").exists()
        else:
            assert done.code == 0, done.err
            assert summary(shell.storage / "pictures" / "full")["cache"]["tier"] == "ram"
            assert "disk" in done.out
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
@pytest.mark.skipif(cpu_count() < 2, reason="two workers need two CPUs")
def test_workers_that_hold_all_cpus_leave_room_for_decoding(shell: Shell, folder: Path) -> None:
    runs = {}
    for cache in ("false", "disk"):
        config = shell.config(data=str(folder), imgsz=16, record_samples=True, scaling={"workers": cpu_count()})
        done = shell.run("train", config, f"cache={cache}", f"name=from-{cache}")
        assert done.code == 0, done.err
        assert not done.err, "Ray Data says nothing"
        runs[cache] = received(shell.storage / "pictures" / f"from-{cache}")
    assert runs["false"].pixels == runs["disk"].pixels
    assert runs["false"].validation_pixels == runs["disk"].validation_pixels


def test_issues_of_images_and_labels_are_listed(shell: Shell, folder: Path) -> None:
    (folder / "train" / "red" / "0.png").write_bytes(b"")
    done = shell.run("train", shell.config(data=str(folder), imgsz=16, epochs=1, name="flawed"))
    assert done.code == 0, done.err
    with (shell.storage / "pictures" / "flawed" / "data_issues.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"id": "train/red/0.png", "kind": "image", "reason": "the file is empty"}]
    assert json.loads((shell.storage / "pictures" / "flawed" / "summary.json").read_text())["dataset"]["skipped"] == 1
