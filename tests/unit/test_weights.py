from __future__ import annotations

import argparse
import email.message
import hashlib
import io
import json
import os
import pickle
import stat
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pyarrow.fs
import pytest
import torch
from moto.server import ThreadedMotoServer
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models as torchvision_models

from tests import tiny
from tests.tiny import recipe
from trainables import checkpoint, weight_files
from trainables.contracts import State
from trainables.models import NoMemory, build_classifier, check_classifier
from trainables.pixels import Normalization
from trainables.weight_files import cached_path
from trainables.weights import load_pretrained, match, read_weights

TINY = "tests.tiny:linear"
CONV = "tests.tiny:conv"


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """Of ``tests.tiny:linear`` for three classes."""
    return {"1.weight": torch.randn(3, 192), "1.bias": torch.randn(3)}


def check_and_build(path: Path | str, classes: int = 3, model: str = TINY) -> tuple[Any, nn.Module]:
    made = recipe(model=model, pretrained=str(path))
    return check_classifier(made, classes, 8)[1], build_classifier(made, classes, 8)[0]


def equal(model: nn.Module, weights: dict[str, Tensor]) -> bool:
    own = model.state_dict()
    return own.keys() == weights.keys() and all(torch.equal(own[key], weights[key]) for key in own)


def without_memory(name: str, classes: int = 1000) -> nn.Module:
    options: dict[str, Any] = {"weights_backbone": None} if name in torchvision_models.detection.__dict__ else {}
    with NoMemory():
        model: nn.Module = torchvision_models.get_model(name, weights=None, num_classes=classes, **options)
    return model.to("meta")


# ------------------------------------------------------------------------------------------- reading a file


def torch_file(content: Any, path: Path) -> None:
    torch.save(content, path)


def safe_file(content: Any, path: Path) -> None:
    save_file(content, path)


@pytest.mark.parametrize(
    ("write", "name"),
    [(torch_file, "weights.pt"), (torch_file, "w.pth"), (torch_file, "w.bin"), (safe_file, "w.safetensors")],
)
def test_weights_are_loaded_from_a_file(tmp_path: Path, weights: dict[str, Tensor], write: Any, name: str) -> None:
    write(weights, tmp_path / name)
    loaded, model = check_and_build(tmp_path / name)
    assert loaded.loaded == ["1.weight", "1.bias"]
    assert (loaded.resized, loaded.missing, loaded.unused) == ([], [], [])
    assert str(loaded) == f"2 tensors loaded from {tmp_path / name}"
    assert equal(model, weights)


def plain(state: Any) -> Any:
    return state


WRAPPED: dict[str, Callable[[Any], Any]] = {
    "bare": plain,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"state": {0: {"m": torch.ones(3)}}}},
    "model": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 0.5},
    "nested": lambda state: {"state_dict": {"model": state}},
    "nested the other way": lambda state: {"model": {"state_dict": state}},
    "an unusual key": lambda state: {"my_network": state, "optimizer": {"state": {0: {"m": torch.ones(3)}}}},
    "averaged": lambda state: {
        "state_dict": {key: 0 * value for key, value in state.items()},
        "state_dict_ema": state,
    },
    "averaged, of torchvision's scripts": lambda state: {
        "model": {key: 0 * value for key, value in state.items()},
        "model_ema": {"n_averaged": torch.tensor(5)} | {f"module.{key}": value for key, value in state.items()},
    },
}


@pytest.mark.parametrize("wrap", WRAPPED)
def test_a_checkpoint_is_unwrapped(tmp_path: Path, weights: dict[str, Tensor], wrap: str) -> None:
    torch.save(WRAPPED[wrap](weights), tmp_path / "weights.pt")
    assert equal(check_and_build(tmp_path / "weights.pt")[1], weights)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "backbone.", "_orig_mod.", "module._orig_mod.", "my.net."])
def test_a_prefix_is_dropped(tmp_path: Path, weights: dict[str, Tensor], prefix: str) -> None:
    save_file({prefix + key: tensor for key, tensor in weights.items()}, tmp_path / "weights.safetensors")
    loaded, model = check_and_build(tmp_path / "weights.safetensors")
    assert (loaded.missing, loaded.unused) == ([], [])
    assert equal(model, weights)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted(tmp_path: Path, weights: dict[str, Tensor], kind: torch.dtype) -> None:
    torch.save({key: tensor.to(kind) for key, tensor in weights.items()}, tmp_path / "weights.pt")
    assert {tensor.dtype for tensor in read_weights(tmp_path / "weights.pt").values()} == {torch.float32}
    model = check_and_build(tmp_path / "weights.pt")[1]
    assert equal(model, {key: tensor.to(kind).float() for key, tensor in weights.items()})


def test_tensors_that_were_saved_on_a_gpu_are_read(
    tmp_path: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")
        torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(tmp_path / "weights.pt", weights_only=True)
    assert equal(check_and_build(tmp_path / "weights.pt")[1], weights)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (os.environ["BOMB"],))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_in_a_file_of_weights_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    buffer = io.BytesIO()
    torch.save({"1.weight": torch.ones(3, 192), "more": Bomb()}, buffer)
    for content in (buffer.getvalue(), pickle.dumps(Bomb())):
        for name in ("weights.pt", "weights.safetensors"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match="is not a readable file of weights"):
                read_weights(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_a_whole_saved_model_is_refused_with_what_to_save_instead(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"it holds Python objects.*save model\.state_dict\(\) alone"):
        read_weights(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a readable file"),
        (b"no weights", "is not a readable file"),
        ([1, 2], "holds a list, not a state dict"),
        ({"epoch": 3, "lr": 0.1}, "holds a dict of epoch, lr, not a state dict"),
        ({}, "holds a dict, not a state dict"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=rf"^pretrained: {path} {message}"):
        read_weights(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"pretrained: there is no file {tmp_path}/absent.pt"):
        check_and_build(tmp_path / "absent.pt")
    with pytest.raises(ValueError, match=f"pretrained: the folder {tmp_path} holds no checkpoint"):
        check_and_build(tmp_path)
    with pytest.raises(ValueError, match=r"ftp://x/y\.pt cannot be read: name a local path, s3://, gs:// or https://"):
        check_and_build("ftp://x/y.pt")


def test_densenets_of_torchvisions_files_have_todays_names(tmp_path: Path) -> None:
    old = "features.denseblock1.denselayer1"
    torch.save({f"{old}.norm.1.weight": torch.ones(64), f"{old}.conv.2.weight": torch.ones(1)}, tmp_path / "w.pth")
    assert set(read_weights(tmp_path / "w.pth")) == {f"{old}.norm1.weight", f"{old}.conv2.weight"}


# ------------------------------------------------------------------------------------------- our own checkpoints


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/best", "checkpoints/best/model.safetensors"])
@pytest.mark.parametrize("average", [False, True])
def test_a_run_of_our_own_is_a_source(tmp_path: Path, place: str, average: bool) -> None:
    raw, ema = tiny.conv(3).state_dict(), tiny.conv(3).state_dict()
    (tmp_path / "checkpoints").mkdir()
    checkpoint.save(
        tmp_path / "checkpoints" / "best", checkpoint.capture(State(raw, {}, {}, ema=ema if average else {}))
    )
    if place == "checkpoints":
        with pytest.raises(ValueError, match="holds no checkpoint"):
            check_and_build(tmp_path / place, model=CONV)
        return
    model = check_and_build(tmp_path / place, model=CONV)[1]
    assert equal(model, ema if average and not place.endswith("model.safetensors") else raw)


def test_the_normalisation_in_the_metadata_is_taken(tmp_path: Path) -> None:
    def built(metadata: dict[str, str] | None) -> Normalization:
        save_file(tiny.conv(3).state_dict(), tmp_path / "w.safetensors", metadata)
        return build_classifier(recipe(model=CONV, pretrained=str(tmp_path / "w.safetensors")), 3, 8)[1]

    stored = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.1, 0.3]}
    assert built({"normalization": json.dumps(stored)}) == Normalization((0.5, 0.4, 0.3), (0.2, 0.1, 0.3))
    for other in (
        None,
        {"format": "pt"},
        {"normalization": "no"},
        {"normalization": json.dumps(stored | {"std": [0]})},
    ):
        assert built(other) == Normalization()


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_run_hands_its_normalisation_on(tmp_path: Path, ema: float) -> None:
    """From a file that has one through a run to the next, whichever of its files that begins with."""
    expected = Normalization((0.5, 0.4, 0.3), (0.2, 0.1, 0.3))
    stored = {"normalization": json.dumps({"mean": expected.mean, "std": expected.std})}
    save_file(tiny.conv(3).state_dict(), tmp_path / "w.safetensors", stored)
    first = recipe(model=CONV, pretrained=str(tmp_path / "w.safetensors"), epochs=1, ema=ema)
    tiny.run(first, tiny.toy(), tmp_path / "run")
    files = list((tmp_path / "run" / "last").glob("*.safetensors"))
    for source in (tmp_path / "run" / "last", *(file for file in files if file.stem != "optimizer")):
        assert build_classifier(recipe(model=CONV, pretrained=str(source)), 3, 8)[1] == expected


# ------------------------------------------------------------------------------------------------ matching


def test_a_head_for_other_classes_is_left_as_initialised(tmp_path: Path) -> None:
    torch.save(tiny.conv(3).state_dict(), tmp_path / "weights.pt")
    torch.manual_seed(0)
    fresh = tiny.conv(4).state_dict()
    torch.manual_seed(0)
    loaded, model = check_and_build(tmp_path / "weights.pt", classes=4, model=CONV)
    assert (loaded.loaded, loaded.resized) == (["0.weight", "0.bias"], ["4.weight", "4.bias"])
    same = {key for key, tensor in model.state_dict().items() if torch.equal(tensor, fresh[key])}
    assert same == {"4.weight", "4.bias"}


def test_a_file_of_which_nothing_fits_is_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save({**weights, "extra": torch.ones(1), "0.count": torch.tensor(3)}, tmp_path / "weights.pt")
    message = r"no tensor of .*weights\.pt fits tests\.tiny:linear \(the file has 1\.weight, .*the model has 1\.weight"
    for step in (check_classifier, build_classifier):
        with pytest.raises(ValueError, match=message):
            step(recipe(model=TINY, pretrained=str(tmp_path / "weights.pt")), 4, 8)


def test_what_became_of_the_file_is_told(tmp_path: Path) -> None:
    file = {
        "0.weight": torch.ones(8, 3, 3, 3),
        "5.weight": torch.ones(9, 9),
        "5.bias": torch.ones(3),
        "x": torch.ones(1),
    }
    torch.save({f"module.{key}": tensor for key, tensor in file.items()}, tmp_path / "weights.pt")
    loaded, model = check_and_build(tmp_path / "weights.pt", model=CONV)
    assert loaded.loaded == ["0.weight"]
    assert loaded.missing == ["0.bias", "4.weight", "4.bias"]
    assert loaded.unused == ["module.5.weight", "module.5.bias", "module.x"]
    assert (model.state_dict()["0.weight"] == 1).all()
    torch.save({"0.weight": torch.ones(8, 3, 3, 3), "4.weight": torch.ones(9, 9)}, tmp_path / "weights.pt")
    loaded, _ = check_and_build(tmp_path / "weights.pt", model=CONV)
    assert loaded.resized == ["4.weight"]
    assert "1 resized (4.weight); 2 missing (0.bias, 4.bias)" in str(loaded)


def test_a_body_in_a_wrapper_beside_a_head_is_found() -> None:
    own = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    file = {"backbone.0.weight": torch.ones(4, 3), "backbone.0.bias": torch.ones(4), "head.weight": torch.ones(9, 4)}
    loaded, tensors = match(own, file, "file", "model")
    assert set(tensors) == {"0.weight", "0.bias"}
    assert loaded.unused == ["head.weight"]


def test_tied_tensors_that_are_stored_once_are_not_missing() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    stored = {"0.weight": torch.ones(4, 4), "0.bias": torch.ones(4), "1.bias": torch.ones(4)}
    assert match(model, stored, "file", "model")[0].missing == []


BACKBONES = [
    # detector, classifier, prefix, tensors of the classifier's features that fit nowhere
    ("fasterrcnn_resnet50_fpn", "resnet50", "backbone.body.", 0),
    ("fasterrcnn_mobilenet_v3_large_320_fpn", "mobilenet_v3_large", "backbone.body.", 0),
    ("ssd300_vgg16", "vgg16", "backbone.", 0),
    ("ssdlite320_mobilenet_v3_large", "mobilenet_v3_large", "backbone.features.0.", 48),  # its tail is half as wide
]


@pytest.mark.parametrize(("detector", "classifier", "prefix", "left"), BACKBONES)
def test_a_classifiers_weights_load_into_a_detectors_backbone(
    detector: str, classifier: str, prefix: str, left: int
) -> None:
    weights = without_memory(classifier).state_dict()
    model = without_memory(detector, 4)
    loaded, tensors = match(model, weights, "file", detector)
    assert loaded.prefix == prefix
    assert f"into {prefix}*" in str(loaded)
    assert all(name.startswith("backbone.") for name in tensors)
    unused = [name for name in loaded.unused if not name.startswith(("fc.", "classifier."))]
    assert len(unused) == left
    # in its order, so that no two layers of the same shape are confused
    positions = {id(tensor): position for position, tensor in enumerate(weights.values())}
    order = [positions[id(tensors[name])] for name in model.state_dict() if name in tensors]
    assert order == sorted(order)


def test_a_detectors_weights_load_into_a_classifier() -> None:
    weights = without_memory("fasterrcnn_mobilenet_v3_large_320_fpn", 91).state_dict()
    loaded, _ = match(without_memory("mobilenet_v3_large", 5), weights, "file", "mobilenet_v3_large")
    assert [name for name in loaded.missing if not name.startswith("classifier.")] == []


@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("resnet50", "resnet18"),  # over half of resnet18's values fit in name and shape
        ("resnet18", "resnet50"),
        ("resnet50", "wide_resnet50_2"),
        ("vgg11", "vgg11_bn"),
        ("mobilenet_v2", "efficientnet_b0"),  # the head fits, and little else
        ("mobilenet_v3_small", "mobilenet_v3_large"),
        ("squeezenet1_1", "squeezenet1_0"),
        ("resnet18", "squeezenet1_1"),
        ("ssd300_vgg16", "resnet18"),
        ("fasterrcnn_resnet50_fpn", "resnet18"),
    ],
)
def test_weights_of_another_architecture_are_refused(model: str, file: str) -> None:
    weights = without_memory(file).state_dict()
    with pytest.raises(ValueError, match=rf"^pretrained: .*weights\.pt .*{model}.*: name a file of weights of {model}"):
        match(without_memory(model), weights, "weights.pt", model)


def test_a_head_alone_is_not_enough() -> None:
    model = nn.ModuleDict({"body": nn.Linear(3, 4), "fc": nn.Linear(4, 2)})
    with pytest.raises(ValueError, match="no tensor of file but its head fits model"):
        match(model, {"fc.weight": torch.ones(2, 4), "fc.bias": torch.ones(2), "x": torch.ones(1)}, "file", "model")
    only = nn.ModuleDict({"fc": nn.Linear(4, 2)})
    assert match(only, {"fc.weight": torch.ones(2, 4)}, "file", "model")[0].loaded == ["fc.weight"]


def test_counters_alone_are_no_weights() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="no tensor of file fits"):
        match(model, {"0.num_batches_tracked": torch.tensor(3)}, "file", "model")


def test_positions_of_a_vision_transformer_are_resampled_for_other_images() -> None:
    class Transformer(nn.Module):
        def __init__(self, side: int) -> None:
            super().__init__()
            self.pos_embedding = nn.Parameter(torch.zeros(1, 1 + side * side, 2))
            self.layer = nn.Linear(2, 2)

    stored = Transformer(4).state_dict()
    rows = torch.arange(4.0).repeat_interleave(4)
    stored["pos_embedding"] = torch.cat([torch.full((1, 1, 2), 7.0), torch.stack([rows, rows.roll(0)], 1)[None]], 1)
    model = Transformer(8)
    loaded, _ = match(model, stored, "file", "model")
    assert loaded.resampled == ["pos_embedding"]
    assert "1 resampled (pos_embedding)" in str(loaded)
    table = match(model, stored, "file", "model")[1]["pos_embedding"]
    assert (table[0, 0] == 7).all(), "the class token is no place"
    grid = table[0, 1:, 0].reshape(8, 8)
    assert torch.allclose(grid, grid[:, :1].expand(8, 8)), "a row is a row"
    assert (grid[1:, 0] > grid[:-1, 0]).all(), "and comes where it was"


def test_real_weights_of_a_whole_model_fit_all_but_the_head(test_weights: Path) -> None:
    path = test_weights / "squeezenet1_1_torchvision.pth"
    made = recipe(model="squeezenet1_1", pretrained=str(path))
    _, loaded = check_classifier(made, 19, 224)
    assert loaded is not None
    assert loaded.resized == ["classifier.1.weight", "classifier.1.bias"]
    assert (len(loaded.loaded), loaded.missing, loaded.unused) == (50, [], [])
    model, _ = build_classifier(made, 19, 224)
    assert torch.equal(model.state_dict()["features.0.weight"], read_weights(path)["features.0.weight"])


def test_real_weights_of_features_alone_leave_the_head_missing(test_weights: Path) -> None:
    made = recipe(model="mobilenet_v2", pretrained=str(test_weights / "mobilenet_v2_torchvision_features.pth"))
    _, loaded = check_classifier(made, 19, 224)
    assert loaded is not None
    assert loaded.missing == ["classifier.1.weight", "classifier.1.bias"]
    assert (loaded.resized, loaded.unused) == ([], [])
    assert len(loaded.loaded) > 300


def test_a_detectors_default_normalisation_gives_way_to_a_classifiers(tmp_path: Path) -> None:
    own = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    model = nn.ModuleDict({"backbone": tiny.conv(3), "head": nn.Linear(3, 3)})
    made = recipe(pretrained=str(tmp_path / "w.pt"))
    for file, expected in ((model["backbone"], Normalization()), (model, own)):
        torch.save(file.state_dict(), tmp_path / "w.pt")
        assert load_pretrained(model, made, None, own)[1] == expected
    assert load_pretrained(model, recipe(pretrained=False), None, own) == (None, own)


# ------------------------------------------------------------------------------------------ from elsewhere


class Server:
    """In the place of urllib's urlopen."""

    def __init__(self, content: bytes, length: int | None = None) -> None:
        self.content, self.length, self.asked = content, length, 0

    def __call__(self, request: urllib.request.Request, timeout: float) -> Any:
        self.asked += 1
        assert timeout > 0
        headers = email.message.Message()
        headers["Content-Length"] = str(len(self.content) if self.length is None else self.length)
        response = io.BytesIO(self.content)
        response.headers = headers  # type: ignore[attr-defined]
        return response


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def content_of(weights: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return buffer.getvalue()


def test_a_file_of_the_web_is_downloaded_once(
    weights: dict[str, Tensor], hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(content_of(weights))
    monkeypatch.setattr(urllib.request, "urlopen", server)
    for _ in range(2):
        assert equal(check_and_build("https://example.org/some/weights.pt?download=true")[1], weights)
    assert server.asked == 1
    (kept,) = hub.iterdir()
    assert kept.name.endswith("-weights.pt")
    assert stat.S_IMODE(kept.stat().st_mode) & stat.S_IRUSR
    assert cached_path("https://example.org/other/weights.pt") != kept, "files of one name are kept apart"


def test_torchs_own_files_keep_their_name_and_are_verified(
    weights: dict[str, Tensor], hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = content_of(weights)
    right, wrong = hashlib.sha256(content).hexdigest()[:8], "0123abcd"
    monkeypatch.setattr(urllib.request, "urlopen", Server(content))
    assert set(read_weights(f"https://example.org/net-{right}.pth")) == set(weights)
    assert [path.name for path in hub.iterdir()] == [f"net-{right}.pth"]
    with pytest.raises(ValueError, match=f"its SHA-256 begins with {right}, not with {wrong}"):
        read_weights(f"https://example.org/net-{wrong}.pth")
    assert [path.name for path in hub.iterdir()] == [f"net-{right}.pth"]


def test_half_a_download_leaves_nothing(weights: dict[str, Tensor], hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = content_of(weights)
    monkeypatch.setattr(urllib.request, "urlopen", Server(content[:100], len(content)))
    with pytest.raises(ValueError, match=rf"the connection broke after 100 of {len(content)} bytes"):
        read_weights("https://example.org/weights.pt")
    assert list(hub.iterdir()) == []


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route to host"), TimeoutError("no route to host"), OSError("no route to host")]
)
def test_an_unreachable_address_says_what_to_do(hub: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    message = (
        r"^pretrained: https://example\.org/weights\.pt cannot be downloaded to .*no route to host.*set pretrained"
    )
    with pytest.raises(ValueError, match=message):
        read_weights("https://example.org/weights.pt")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of a bucket."""
    folder = tmp_path / "cloud"
    (folder / "bucket").mkdir(parents=True)
    fake = pyarrow.fs.SubTreeFileSystem(str(folder), pyarrow.fs.LocalFileSystem())
    monkeypatch.setattr(weight_files, "_bucket", lambda scheme, name: fake)
    return folder / "bucket"


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_weights_are_read_from_a_bucket(bucket: Path, weights: dict[str, Tensor], scheme: str) -> None:
    torch.save(weights, bucket / "with space #1.pt")
    assert equal(check_and_build(f"{scheme}://bucket/with space #1.pt")[1], weights)
    checkpoint.save(bucket / "best", State(weights, {}, {}))
    assert equal(check_and_build(f"{scheme}://bucket/best/")[1], weights)
    with pytest.raises(ValueError, match=rf"pretrained: there is no file {scheme}://bucket/absent\.pt"):
        read_weights(f"{scheme}://bucket/absent.pt")


def test_s3_is_asked_at_the_endpoint_of_the_environment(
    tmp_path: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """moto stands in for S3 on loopback."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        for name in list(os.environ):
            if name.startswith("AWS_"):
                monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        client.create_bucket(Bucket="models")
        client.put_object(Bucket="models", Key="some/w.pt", Body=content_of(weights))
        assert equal(check_and_build("s3://models/some/w.pt")[1], weights)
        with pytest.raises(ValueError, match=r"there is no file s3://models/some/x\.pt"):
            read_weights("s3://models/some/x.pt")
    finally:
        server.stop()


def test_a_bucket_that_cannot_be_read_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: Any) -> None:
        raise OSError("When getting information for key: ACCESS_DENIED")

    monkeypatch.setattr(weight_files, "_bucket", closed)
    with pytest.raises(ValueError, match=r"s3://b/w\.pt cannot be read; check its name, the AWS_.*ACCESS_DENIED"):
        read_weights("s3://b/w.pt")
