"""Every format reads the same from a bucket as from a folder; moto stands in for S3 on loopback."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import boto3
import pytest
from moto import settings
from moto.server import ThreadedMotoServer

from orchestrator.data import buckets, detect, files, get_format
from orchestrator.data.files import Files, open_input, read_bytes, read_many
from orchestrator.data.manifest import Manifest, read_manifest
from tests.layouts import EXAMPLES
from trainables.contracts import Sample

BUCKET = "images"
NO_ACCESS = "may not be read: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of the server, which the environment names; nothing else of the machine's settings is seen."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "eu-central-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", region_name="eu-central-1")
    client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    yield client
    for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])
    client.delete_bucket(Bucket=BUCKET)
    buckets._connect.cache_clear()
    buckets._exists.cache_clear()


def upload(s3: Any, root: Path, prefix: str) -> str:
    for path in sorted(root.rglob("*")):
        if path.is_file():
            s3.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(root)}")
    return f"s3://{BUCKET}/{prefix}"


# ------------------------------------------------------------------------------------------------------ formats


def told(manifest: Manifest) -> tuple[Any, ...]:
    """All of a manifest that does not depend on where the files lie."""

    def placeless(sample: Sample) -> Sample:
        return replace(sample, image="", stamp="")

    return (
        *(manifest.name, manifest.format, manifest.classes, manifest.issues),
        [placeless(sample) for sample in manifest.samples()],
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_format_reads_the_same_from_a_bucket(name: str, tmp_path: Path, s3: Any) -> None:
    EXAMPLES[name](tmp_path / "set")
    here, there = read_manifest(str(tmp_path / "set")), read_manifest(upload(s3, tmp_path / "set", "sets/set"))
    assert here.format == name
    assert told(there) == told(here)
    assert set(there.table["split"].to_pylist()) == {"train", "val"}
    load = get_format(name).load
    assert [load(sample.image) for sample in there.samples()] == [load(sample.image) for sample in here.samples()]
    assert all(sample.image.startswith(f"s3://{BUCKET}/sets/set/") for sample in there.samples())
    assert all(":" in sample.stamp for sample in there.samples())


@pytest.mark.parametrize(("name", "file"), [("yolo", "data.yaml"), ("parquet", "data/train-00000-of-00001.parquet")])
def test_a_file_in_a_bucket_may_be_named(name: str, file: str, tmp_path: Path, s3: Any) -> None:
    EXAMPLES[name](tmp_path / "set")
    here, there = (
        read_manifest(f"{tmp_path}/set/{file}"),
        read_manifest(f"{upload(s3, tmp_path / 'set', 'set')}/{file}"),
    )
    assert len(here) > 0
    assert told(there) == told(here)


# -------------------------------------------------------------------------------------------------------- files


def test_listing_and_reading_a_bucket(tmp_path: Path, s3: Any) -> None:
    for name in ("a/2.png", "a/1.png", "a/.hidden", ".git/x", "b.JPG"):
        s3.put_object(Bucket=BUCKET, Key=f"set/{name}", Body=name.encode())
    location = Files(f"s3://{BUCKET}/set/")
    assert [(entry.path, entry.is_dir) for entry in location.entries()] == [("a", True), ("b.JPG", False)]
    assert [entry.path for entry in location.walk()] == ["a/1.png", "a/2.png", "b.JPG"]
    assert [entry.path for entry in Files(f"s3://{BUCKET}/set/a").walk("../a")] == ["../a/1.png", "../a/2.png"]
    assert (location.is_dir("a"), location.is_file("a/1.png"), location.entry("a/3.png")) == (True, True, None)
    entry = location.entry("b.JPG")
    assert entry is not None
    assert entry.stamp == location.entries()[1].stamp
    assert entry.stamp.startswith("5:")
    assert location.read("a/1.png") == b"a/1.png"
    places = [location.place(name) for name in ("a/2.png", "b.JPG", "a/1.png")] * 20
    assert list(read_many(places)) == [b"a/2.png", b"b.JPG", b"a/1.png"] * 20
    with open_input(places[0]) as file:
        file.seek(2)
        assert file.read() == b"2.png"
    with pytest.raises(FileNotFoundError):
        location.read("a/3.png")
    with pytest.raises(ValueError, match=f"there is no folder s3://{BUCKET}/set/c"):
        location.entries("c")


def test_small_files_of_a_bucket_are_read_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(place: str) -> bytes:
        time.sleep(0.02)
        return place.encode()

    monkeypatch.setattr(files, "read_bytes", slow)
    start = time.monotonic()
    places = [f"s3://{BUCKET}/{i}" for i in range(100)]
    assert list(read_many(places)) == [place.encode() for place in places]
    assert time.monotonic() - start < 1


# ----------------------------------------------------------------------------------------------------- refusals


def refusal(location: str) -> str:
    start = time.monotonic()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is compared by the caller)
        detect(location)
    assert time.monotonic() - start < 10
    return str(caught.value)


def test_a_bucket_or_folder_that_is_not_there_is_refused(s3: Any) -> None:
    assert refusal(f"s3://{BUCKET}/absent").startswith(f"there is no file or folder s3://{BUCKET}/absent;")
    assert refusal("s3://no-such/set").startswith("s3://no-such/set: there is no bucket no-such")
    assert refusal("s3://no-such").startswith("s3://no-such: there is no bucket no-such")
    with pytest.raises(ValueError, match="there is no bucket no-such"):
        Files("s3://no-such").entries()
    with pytest.raises(ValueError, match="s3:///set names no bucket: write s3://BUCKET/PATH"):
        read_bytes("s3:///set")


def test_an_endpoint_that_does_not_answer_is_refused_soon(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    message = refusal(f"s3://{BUCKET}/set")
    assert message.startswith(f"s3://{BUCKET}/set cannot be reached at {url}: ")
    assert "\n" not in message


def test_wrong_credentials_are_told(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put_object(Bucket=BUCKET, Key="set/a.png", Body=b"x")
    with monkeypatch.context() as checking:
        checking.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
        message = refusal(f"s3://{BUCKET}/set")
        with pytest.raises(ValueError, match="may not be read"):
            Files(f"s3://{BUCKET}/set").entries()
    assert message.startswith(f"s3://{BUCKET}/set {NO_ACCESS} (")


class Private(BaseHTTPRequestHandler):
    """A server that answers nobody without credentials, as S3 does for a bucket that is not public."""

    def do_HEAD(self) -> None:
        self.send_response(500 if self.headers["Authorization"] else 403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, *message: Any) -> None: ...


@pytest.mark.usefixtures("s3")
def test_missing_credentials_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with ThreadingHTTPServer(("127.0.0.1", 0), Private) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        message = refusal(f"s3://{BUCKET}/set")
        server.shutdown()
    assert message.startswith(f"s3://{BUCKET}/set {NO_ACCESS} (")


@pytest.mark.parametrize(
    ("text", "start"),
    [
        (
            "google::cloud::Status(PERMISSION_DENIED: ...)",
            "gs://b/x may not be read: set GOOGLE_APPLICATION_CREDENTIALS",
        ),
        ("Could not create a OAuth2 access token", "gs://b/x may not be read: set GOOGLE_APPLICATION_CREDENTIALS"),
        ("The specified bucket does not exist.", "gs://b/x: there is no bucket b"),
        ("x" * 1000, "gs://b/x cannot be reached: xxx"),
    ],
)
def test_failures_of_google_are_told_apart(text: str, start: str) -> None:
    message = str(buckets._error("gs://b/x", OSError(text)))
    assert message.startswith(start)
    assert len(message) < 500
