"""What the command says of itself, and that the docs and the shipped files agree with it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from orchestrator.config import Config
from orchestrator.reading import load_config
from orchestrator.schema import schema_keys
from tests.conftest import ROOT
from tests.e2e.shell import Shell
from tests.e2e.test_bad_input import call
from tests.e2e.test_in_process import run_recording_modules

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
KEYS = [key.name for key in schema_keys()]
GUIDE = [
    *("batch", "fraction", "scale", "multi_scale", "cache", "amp", "pretrained", "lr", "lrf", "schedule"),
    *("warmup_epochs", "epochs", "patience", "optimizer", "momentum", "seed", "imgsz", "fliplr", "deterministic"),
    *("compile", "max_bad_fraction", "task", "model", "data", "format", "metric", "storage", "name"),
]
"""The keys that DESIGN section 1 and the issue ask for, beside the groups."""


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    done = call("schema")
    assert (done.code, done.err) == (0, "")
    values: dict[str, Any] = json.loads(done.out)
    return values


def test_help_is_light(shell: Shell) -> None:
    """It answers at once: neither torch nor Ray nor MLflow is imported for it."""
    done, modules = run_recording_modules(shell, "--help")
    assert done.code == 0
    assert {"train", "resume", "schema"} <= set(done.out.split())
    assert "orchestrator.cli" in modules
    assert not {"torch", "ray", "mlflow", "torchvision", "cv2", "numpy"} & modules


def test_help_of_train_lists_every_key() -> None:
    done = call("train", "--help")
    assert done.code == 0
    told = {key: text for key, _, text in re.findall(r"^ +([\w.]+) \((.*?)\): (.+)", done.out, re.MULTILINE)}
    assert list(told) == KEYS
    assert all(len(text) > 10 for text in told.values())
    assert "--local" in done.out


@pytest.mark.parametrize("key", [*GUIDE, "scaling.workers", "scaling.address", "tracking.uri"])
def test_the_schema_has_the_keys_of_the_guide(key: str) -> None:
    assert key in KEYS


def test_no_arguments_show_the_help() -> None:
    done = call()
    assert all(command in done.out + done.err for command in ("train", "resume", "schema"))


def test_schema_is_a_json_schema(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"].keys() >= {*Config.model_fields, "base"}
    described = [*schema["properties"].values(), *schema["$defs"].values()]
    assert all("description" in value or "$ref" in value for value in described)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_are_valid(path: Path, schema: dict[str, Any]) -> None:
    jsonschema.validate(yaml.safe_load(path.read_text()), schema)
    load_config(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_start_with_their_command(path: Path) -> None:
    text = path.read_text()
    command = "tune" if "tune" in yaml.safe_load(text) else "train"
    assert f"orchestrator {command} configs/{path.name}" in text.split("\n\n")[0]


@pytest.mark.parametrize("wrong", [{"epoch": 3}, {"lr": "fast"}, {"scaling": {"worker": 2}}, {"optimizer": "adam"}])
def test_schema_refuses_what_the_command_refuses(schema: dict[str, Any], wrong: dict[str, Any]) -> None:
    """So that an editor marks it."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"data": "digits", **wrong}, schema)


def test_the_docs_are_those_of_the_schema() -> None:
    """`make docs` writes them."""
    done = call("schema", "--markdown")
    assert done.code == 0
    assert (ROOT / "docs" / "config.md").read_text() == done.out
    assert all(f"`{key}`" in done.out for key in KEYS)
