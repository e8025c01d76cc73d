from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainables.registry import did_you_mean, load, lookup

TABLE = {"cosine": len, "linear": "json:loads"}


def test_a_name_gives_its_entry() -> None:
    assert lookup(TABLE, "cosine", "schedule") is len


def test_references_are_loaded_in_the_table_and_outside_of_it() -> None:
    assert lookup(TABLE, "linear", "schedule") is json.loads
    assert lookup(TABLE, "pathlib:Path", "schedule") is Path


def test_an_unknown_name_answers_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"^unknown schedule 'cosin': did you mean cosine\?$"):
        lookup(TABLE, "cosin", "schedule")


def test_a_name_like_none_of_them_answers_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"^unknown schedule 'xyz': choose one of: cosine, linear$"):
        lookup(TABLE, "xyz", "schedule")
    assert did_you_mean("?", [f"name{i:02d}" for i in range(20)]).endswith("name10, name11, ...")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such_module:x", "there is no module 'no_such_module'"),
        ("json.no_such_module:x", "there is no module 'json.no_such_module'"),
        ("json:no_such_name", "module 'json' has no 'no_such_name'"),
        ("json:", "module 'json' has no ''"),
    ],
)
def test_a_wrong_reference_says_what_is_missing(reference: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(reference)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import no_such_dependency", ModuleNotFoundError),
        ("import json; json.no_such_function", AttributeError),
        ("raise RuntimeError('no license')", RuntimeError),
    ],
)
def test_what_is_wrong_inside_the_users_module_is_raised_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, error: type[Exception]
) -> None:
    (tmp_path / "users_own.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(error):
        load("users_own:model")
