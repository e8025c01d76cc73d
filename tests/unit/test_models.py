from __future__ import annotations

import io
import os
import pickle
import sys
import types
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models as torchvision_models

from tests import tiny
from tests.tiny import recipe
from trainables.models import (
    build_classifier,
    check_classifier,
    default_imgsz,
    model_names,
)
from trainables.pixels import Normalization
from trainables.weights import read_weights

FAMILIES = [
    "convnext_tiny",
    "densenet121",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "squeezenet1_1",
    "swin_v2_t",
    "vgg11",
    "vit_b_32",
]
TINY = "tests.tiny:linear"


def trains(model: nn.Module, classes: int, imgsz: int) -> None:
    """Take one training step through all outputs."""
    outputs = model.train()(torch.randn(2, 3, imgsz, imgsz))
    heads = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    assert {tuple(head.shape) for head in heads} == {(2, classes)}
    torch.cat(heads).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# -------------------------------------------------------------------------------------------- what is built


def test_torchvisions_classifiers_are_the_table() -> None:
    assert set(FAMILIES) < set(model_names())
    assert not {"fasterrcnn_resnet50_fpn", "fcn_resnet50", "r3d_18", "raft_small"} & set(model_names())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_built_for_its_size_and_classes(name: str) -> None:
    parameters, loaded = check_classifier(recipe(model=name), 7, default_imgsz(name))
    assert parameters > 100_000
    assert loaded is None
    assert check_classifier(recipe(model=name), 8, default_imgsz(name))[0] > parameters


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(model_names()) - set(FAMILIES)))
def test_every_other_classifier_is_built_too(name: str) -> None:
    assert check_classifier(recipe(model=name), 7, default_imgsz(name))[0] > 100_000


@pytest.mark.parametrize(
    ("name", "imgsz"), [("resnet18", 224), ("inception_v3", 299), ("efficientnet_b7", 600), (TINY, 224)]
)
def test_the_default_size_is_that_of_the_published_weights(name: str, imgsz: int) -> None:
    assert default_imgsz(name) == imgsz


def test_checking_takes_no_memory_for_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []
    original = torchvision_models.get_model

    def watched(*args: Any, **options: Any) -> nn.Module:
        model: nn.Module = original(*args, **options)
        devices.extend(p.device.type for p in model.parameters())
        return model

    monkeypatch.setattr(torchvision_models, "get_model", watched)
    for name in ("regnet_y_400mf", "vit_b_32"):
        check_classifier(recipe(model=name), 7, 64)
    assert set(devices) == {"meta"}


def test_the_built_model_has_the_head_and_the_checked_number_of_parameters() -> None:
    model, normalization = build_classifier(recipe(model="squeezenet1_1"), 5, 64)
    assert sum(p.numel() for p in model.parameters()) == check_classifier(recipe(model="squeezenet1_1"), 5, 64)[0]
    assert normalization == Normalization()
    trains(model, 5, 64)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "heads", "imgsz"), [("googlenet", 3, 64), ("inception_v3", 2, 299)])
def test_auxiliary_heads_train(name: str, heads: int, imgsz: int) -> None:
    model, _ = build_classifier(recipe(model=name), 5, imgsz)
    assert len(model.train()(torch.randn(2, 3, imgsz, imgsz))) == heads
    trains(model, 5, imgsz)


# ----------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("name", "imgsz"),
    [
        ("alexnet", 32),
        ("vgg11", 16),
        ("squeezenet1_1", 16),
        ("inception_v3", 128),  # enough for the model itself, but not for the auxiliary head that training needs
        ("vit_b_16", 100),
        ("maxvit_t", 100),
        ("densenet121", 24),
    ],
)
def test_a_size_that_the_model_does_not_take_is_refused(name: str, imgsz: int) -> None:
    with pytest.raises(ValueError, match=rf"^model {name} .*imgsz={imgsz}: "):
        check_classifier(recipe(model=name), 7, imgsz)


def test_an_unknown_name_answers_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'resnet8': did you mean resnet18"):
        check_classifier(recipe(model="resnet8"), 7, 64)


def own(builder: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The reference of a model function of the user's own."""
    module = types.ModuleType("users_models")
    module.build = builder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "users_models", module)
    return "users_models:build"


class TwoHeads(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.head(images.mean((2, 3)))
        return logits, logits


def decaying(num_classes: int) -> nn.Module:
    """Computes with real numbers while it is built, as models with stochastic depth do."""
    rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]
    return nn.Sequential(nn.Flatten(), *[nn.Dropout(rate) for rate in rates], nn.Linear(192, num_classes))


@pytest.mark.parametrize("builder", [tiny.linear, decaying])
def test_a_function_of_the_users_own_is_taken(monkeypatch: pytest.MonkeyPatch, builder: Any) -> None:
    reference = own(builder, monkeypatch)
    assert check_classifier(recipe(model=reference), 5, 8) == (193 * 5, None)
    trains(build_classifier(recipe(model=reference), 5, 8)[0], 5, 8)


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (lambda num_classes: "a model", "the function returned str, not a torch.nn.Module"),
        (lambda num_classes: nn.Flatten(), r"must map 2 images to logits \(2, 5\), but gave \(2, 192\)"),
        (lambda num_classes: nn.Conv2d(3, 5, 8), r"must map 2 images to logits \(2, 5\), but gave \(2, 5, 1, 1\)"),
        (TwoHeads, r"must map 2 images to logits \(2, 5\), but gave tuple"),
        (lambda: tiny.linear(5), "cannot be called with num_classes="),
        ("text", "cannot be called with num_classes="),
    ],
    ids=["no module", "no head", "no logits", "two outputs", "no argument", "no function"],
)
def test_a_function_that_makes_no_classifier_is_refused(
    monkeypatch: pytest.MonkeyPatch, builder: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_classifier(recipe(model=own(builder, monkeypatch)), 5, 8)


# -------------------------------------------------------------------------------------- weights from a file


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """Of ``tests.tiny:linear`` for three classes."""
    return {"1.weight": torch.randn(3, 192), "1.bias": torch.randn(3)}


def check_and_build(path: Path | str, classes: int = 3, model: str = TINY) -> tuple[Any, nn.Module]:
    made = recipe(model=model, pretrained=str(path))
    return check_classifier(made, classes, 8)[1], build_classifier(made, classes, 8)[0]


def torch_file(content: Any, path: Path) -> None:
    torch.save(content, path)


def safe_file(content: Any, path: Path) -> None:
    save_file(content, path)


@pytest.mark.parametrize(
    ("write", "name"), [(torch_file, "weights.pt"), (torch_file, "weights.pth"), (safe_file, "w.safetensors")]
)
def test_weights_are_loaded_from_a_file(tmp_path: Path, weights: dict[str, Tensor], write: Any, name: str) -> None:
    write(weights, tmp_path / name)
    loaded, model = check_and_build(tmp_path / name)
    assert loaded.loaded == ["1.weight", "1.bias"]
    assert (loaded.resized, loaded.missing, loaded.unused) == ([], [], [])
    assert str(loaded) == f"2 tensors loaded from {tmp_path / name}"
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("wrap", ["state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_wrapped_prefixed_and_other_precisions_are_understood(
    tmp_path: Path, weights: dict[str, Tensor], wrap: str | None, prefix: str, kind: torch.dtype
) -> None:
    content: Any = {prefix + key: tensor.to(kind) for key, tensor in weights.items()}
    torch.save({"epoch": 3, wrap: content} if wrap else content, tmp_path / "weights.pt")
    assert {tensor.dtype for tensor in read_weights(tmp_path / "weights.pt").values()} == {torch.float32}
    loaded, model = check_and_build(tmp_path / "weights.pt")
    assert len(loaded.loaded) == 2
    for key, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, weights[key].to(kind).float())


def test_a_head_for_other_classes_is_left_as_initialised(tmp_path: Path) -> None:
    torch.save(tiny.conv(3).state_dict(), tmp_path / "weights.pt")
    torch.manual_seed(0)
    fresh = tiny.conv(4).state_dict()
    torch.manual_seed(0)
    loaded, model = check_and_build(tmp_path / "weights.pt", classes=4, model="tests.tiny:conv")
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
    loaded, model = check_and_build(tmp_path / "weights.pt", model="tests.tiny:conv")
    assert loaded.loaded == ["0.weight"]
    assert loaded.missing == ["0.bias", "4.weight", "4.bias"]
    assert loaded.unused == ["module.5.weight", "module.5.bias", "module.x"]
    assert (model.state_dict()["0.weight"] == 1).all()
    torch.save({"0.weight": torch.ones(8, 3, 3, 3), "4.weight": torch.ones(9, 9)}, tmp_path / "weights.pt")
    loaded, _ = check_and_build(tmp_path / "weights.pt", model="tests.tiny:conv")
    assert loaded.resized == ["4.weight"]
    assert "1 resized (4.weight); 2 missing (0.bias, 4.bias)" in str(loaded)


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a readable file"),
        (b"no weights", "is not a readable file"),
        ([1, 2], "holds a list, not a state dict"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "weights.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        read_weights(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"pretrained: there is no file {tmp_path}/absent.pt"):
        check_and_build(tmp_path / "absent.pt")


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


# ---------------------------------------------------------------------------------------- published weights


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """What torchvision "downloads" for squeezenet1_1."""
    torch.manual_seed(0)
    state: dict[str, Tensor] = torchvision_models.squeezenet1_1().state_dict()
    monkeypatch.setattr(torchvision_models.SqueezeNet1_1_Weights, "get_state_dict", lambda *_, **__: state)
    return state


def test_published_weights_are_loaded_with_their_normalisation(published: dict[str, Tensor]) -> None:
    made = recipe(model="squeezenet1_1", pretrained=True)
    _, loaded = check_classifier(made, 5, 64)
    assert loaded is not None
    assert (loaded.source, loaded.resized) == ("torchvision", ["classifier.1.weight", "classifier.1.bias"])
    model, normalization = build_classifier(made, 5, 64)
    assert normalization == Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert torch.equal(model.state_dict()["features.0.weight"], published["features.0.weight"])


def test_without_network_the_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torchvision_models.ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(
        ValueError, match=r"pretrained: true needs https://.*resnet18.*no route to host.*set pretrained to a"
    ):
        check_classifier(recipe(model="resnet18", pretrained=True), 5, 64)


def test_ones_own_model_has_no_published_weights() -> None:
    with pytest.raises(
        ValueError, match=r"tests\.tiny:linear has no published weights: set pretrained to false or to a file"
    ):
        check_classifier(recipe(model=TINY, pretrained=True), 5, 8)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_inputs_are_transformed_as_the_published_weights_expect(name: str) -> None:
    """torchvision switches this on where it loads the weights itself."""
    model, _ = build_classifier(recipe(model=name), 5, 299)
    assert getattr(model, "transform_input") is True  # noqa: B009 (untyped)
