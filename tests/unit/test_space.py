"""Search spaces: how domains are written, what they draw, what is refused before anything starts."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
import yaml

from orchestrator.config import Config
from orchestrator.schema import schema_keys
from orchestrator.sweeps.combinations import Space
from orchestrator.sweeps.domains import (
    Choice,
    Conditional,
    Domain,
    Finite,
    Grid,
    Integer,
    LogUniform,
    Normal,
    Stepped,
    Uniform,
)
from orchestrator.sweeps.space import LOCKED, default_space, parse_space, with_params
from orchestrator.sweeps.syntax import DOMAINS, parse_domain

CONFIG = Config(data="digits")

EXAMPLES: dict[str, tuple[str, Domain]] = {
    "list": ("[SGD, 1e-4, true, null, [a.*, b.*]]", Choice(("SGD", 1e-4, True, None, ["a.*", "b.*"]))),
    "choice": ("{choice: [1, true]}", Choice((1, True))),
    "grid": ("{grid: [0.8, 0.9]}", Grid((0.8, 0.9))),
    "uniform": ("{uniform: [0, 1]}", Uniform(0.0, 1.0)),
    "uniform with step": ("{uniform: [0.1, 0.4], step: 0.1}", Stepped(0.1, 0.4, 0.1)),
    "loguniform": ("{loguniform: [1e-4, 1]}", LogUniform(1e-4, 1.0)),
    "loguniform with step": ("{loguniform: [8, 512], step: 8}", LogUniform(8.0, 512.0, 8)),
    "int": ("{int: [0, 5]}", Integer(0, 5)),
    "int with step": ("{int: [0, 5], step: 2}", Integer(0, 5, 2)),
    "normal": ("{normal: [5, 1]}", Normal(5.0, 1.0)),
    "normal with step": ("{normal: [5, 1], step: 0.5}", Normal(5.0, 1.0, 0.5)),
    "by": (
        "{by: optimizer, cases: {SGD: {uniform: [0, 1]}}, else: [0.5]}",
        Conditional("optimizer", (("SGD", Uniform(0.0, 1.0)),), Choice((0.5,))),
    ),
}
LEAVES = {name: domain for name, (_, domain) in EXAMPLES.items() if not isinstance(domain, Conditional)}


def read(text: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(text)
    return values


def space(text: str, config: Config = CONFIG) -> Space:
    found, problems = parse_space(read(text), config)
    assert not problems
    assert found
    return found


def refusals(text: str, config: Config = CONFIG) -> list[str]:
    found, problems = parse_space(read(text), config)
    assert found is None
    assert all(p.message.startswith(p.key) and p.key.startswith("tune.space.") for p in problems)
    return [problem.message.removeprefix("tune.space.") for problem in problems]


def test_every_domain_has_an_example() -> None:
    assert {name.partition(" ")[0] for name in EXAMPLES} - {"list"} == set(DOMAINS)


@pytest.mark.parametrize(("text", "domain"), EXAMPLES.values(), ids=EXAMPLES)
def test_yaml_becomes_its_domain(text: str, domain: Domain) -> None:
    assert parse_domain(yaml.safe_load(text)) == domain


@pytest.mark.parametrize("name", LEAVES)
def test_what_a_domain_draws_lies_in_it_from_end_to_end(name: str) -> None:
    domain = LEAVES[name]
    drawn = [domain.at(u) for u in np.linspace(0, 1, 1001).tolist()]
    assert all(domain.holds(value) for value in drawn)
    assert type(drawn[0]) in (float, int, str)  # plain values, as JSON and YAML can hold
    if not isinstance(domain, Choice):
        assert drawn == sorted(drawn)
        assert [drawn[0], drawn[-1]] == pytest.approx(domain.ends())
        assert not any(domain.holds(value) for value in (drawn[0] - 0.01, drawn[-1] + 0.01, True, None, "a"))


@pytest.mark.parametrize("name", LEAVES)
def test_the_place_of_a_value_is_where_it_was_drawn(name: str) -> None:
    domain = LEAVES[name]
    if isinstance(domain, Finite):
        assert [domain.index(value) for value in domain.values()] == list(range(domain.count))
    elif domain.step is None:
        assert domain.cdf(domain.at(0.3)) == pytest.approx(0.3)


def test_draws_follow_the_distribution() -> None:
    """Quantiles that are known without the code under test."""
    assert [Uniform(2, 4).at(u) for u in (0, 0.25, 0.5)] == [2, 2.5, 3]
    assert [LogUniform(1e-4, 1).at(u) for u in (0.25, 0.5, 0.75)] == pytest.approx([1e-3, 1e-2, 1e-1])
    assert [Normal(5, 2).at(u) for u in (0.1587, 0.5, 0.8413)] == pytest.approx([3, 5, 7], abs=1e-2)
    assert [Normal(5, 2).at(u) for u in (0, 0.001, 0.9999)] == [-1, -1, 11]
    assert [Integer(0, 5).at(u) for u in (0, 0.17, 0.5, 0.99)] == [0, 1, 3, 5]
    assert [Choice(("a", "b", "c")).at(u) for u in (0, 0.34, 0.99)] == ["a", "b", "c"]


def test_steps_are_counted_without_the_noise_of_binary_fractions() -> None:
    assert [*Stepped(0.1, 0.75, 0.1).values()] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert [*Integer(1, 8, 3).values()] == [1, 4, 7]
    assert {LogUniform(0.03, 0.4, 0.1).at(u) for u in np.linspace(0, 1, 99)} == {0.03, 0.1, 0.2, 0.3, 0.4}
    assert {Normal(1, 0.1, 0.1).at(u) for u in np.linspace(0, 1, 999)} == {0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3}


def test_true_is_not_one() -> None:
    assert not Choice((1, 0)).holds(True)
    assert not Uniform(0, 2).holds(True)
    assert Choice((1, 0)).holds(1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.1", "0.1 is not a domain: list the values, [0.1], or use choice, grid"),
        ("{unifrom: [0, 1]}", "unknown domain 'unifrom': did you mean uniform"),
        ("{}", "choose one of: by, choice"),
        ("{step: 2}", "choose one of: by, choice"),
        ("{uniform: [0, 1], int: [0, 1]}", "has uniform and int: keep one"),
        ("[]", "choice needs a list of one value or more"),
        ("{choice: SGD}", "choice needs a list"),
        ("[1, 2, 1.0]", "choice has 1.0 twice"),
        ("[1e-3, 0.001]", "choice has 0.001 twice"),
        ("[.nan]", "nan cannot be listed"),
        ("[.inf]", "inf cannot be listed"),
        ("[{a: 1}]", "cannot be listed"),
        ("{uniform: [1, 0]}", "the range 1 to 0 is reversed: write [0, 1]"),
        ("{int: [3, 3]}", "the range 3 to 3 is empty"),
        ("{uniform: [0]}", "[0] are not two finite numbers: write {uniform: [LOW, HIGH]}"),
        ("{uniform: [0, a]}", "are not two finite numbers"),
        ("{uniform: [0, true]}", "are not two finite numbers"),
        ("{uniform: [0, .inf]}", "are not two finite numbers"),
        ("{loguniform: [.nan, 1]}", "are not two finite numbers"),
        ("{loguniform: [0, 1]}", "its low end must be above 0"),
        ("{loguniform: [-1, 1]}", "its low end must be above 0"),
        ("{uniform: [0, 1], step: 0}", "step = 0: must be a number above 0"),
        ("{uniform: [0, 1], step: x}", "step = x: must be a number above 0"),
        ("{int: [0, 5], step: 6}", "step = 6: must be at most the width of the range, 5"),
        ("{int: [0.5, 3]}", "0.5 is not a whole number: use uniform"),
        ("{int: [0, 3], step: 1.5}", "1.5 is not a whole number"),
        ("{normal: [0, 0]}", "standard deviation = 0: must be above 0"),
        ("{uniform: [0, 1], stp: 0.1}", "uniform takes no 'stp': did you mean step"),
        ("{choice: [1], step: 1}", "choice takes no 'step': leave it out"),
        ("{by: optimizer}", "a condition is written {by: KEY"),
        ("{by: optimizer, cases: {SGD: 0.1}}", "case SGD: 0.1 is not a domain"),
        ("{by: optimizer, cases: {SGD: [1]}, else: {uniform: [1, 0]}}", "else: the range 1 to 0 is reversed"),
        ("{by: a, cases: {b: {by: c, cases: {d: [1]}}}}", "case b: a case cannot have a condition of its own"),
    ],
)
def test_a_domain_that_is_wrong_says_why(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_domain(yaml.safe_load(text))


LR_BY = "lr: {by: optimizer, cases: {SGD: [0.1, 0.2, 0.3], AdamW: [0.001]}}"


def test_the_grid_has_each_combination_once_the_first_key_slowest() -> None:
    found = space(f"{{{LR_BY}, optimizer: [SGD, AdamW], warmup_epochs: {{int: [0, 1]}}}}")
    pairs = [("SGD", 0.1), ("SGD", 0.2), ("SGD", 0.3), ("AdamW", 0.001)]
    assert [tuple(params.values()) for params in found.grid()] == [(*p, w) for p in pairs for w in (0, 1)]
    assert list(found.domains) == ["optimizer", "lr", "warmup_epochs"]
    assert found.size == 8
    assert found.variants("lr") == [0.1, 0.2, 0.3, 0.001]


def test_the_size_counts_every_combination() -> None:
    found = space(
        "{optimizer: [SGD, Adam, AdamW], batch: {by: optimizer, cases: {SGD: [8]}, else: [16, 32]}, "
        "seed: {int: [1, 4]}, lr: {by: batch, cases: {8: [0.1, 0.2, 0.3]}, else: [0.01]}, "
        "lrf: {uniform: [0, 1], step: 0.25}}"
    )
    assert found.size == len({repr(params) for params in found.grid()}) == (3 + 2 * 2) * 4 * 5
    assert found.variants("batch") == [8, 16, 32]


def test_a_large_space_is_counted_without_walking_it() -> None:
    assert space("{seed: {int: [0, 1000000000]}, batch: {int: [1, 1000000]}}").size == 1000000001 * 1000000


def test_a_space_with_a_range_has_no_grid() -> None:
    found = space("{lrf: {uniform: [0, 1]}, batch: [8], lr: {by: optimizer, cases: {SGD: {loguniform: [1e-3, 1]}}, "
                  "else: [0.1]}, optimizer: [SGD, Adam]}")  # fmt: skip
    assert (found.is_finite, found.size, found.infinite) == (False, None, ["lrf", "lr"])


def test_a_sample_has_a_value_of_the_right_case() -> None:
    found = space(f"{{{LR_BY}, optimizer: [SGD, AdamW]}}")
    assert found.sample({"optimizer": 0.2, "lr": 0.9}.__getitem__) == {"optimizer": "SGD", "lr": 0.3}
    assert found.sample({"optimizer": 0.7, "lr": 0.9}.__getitem__) == {"optimizer": "AdamW", "lr": 0.001}


def test_a_space_holds_its_own_samples_and_no_others() -> None:
    found = space(f"{{{LR_BY}, optimizer: [SGD, AdamW]}}")
    assert found.holds({"optimizer": "SGD", "lr": 0.3, "epochs": 5})
    for params in ({"optimizer": "AdamW", "lr": 0.3}, {"optimizer": "SGD"}, {"optimizer": "Adam", "lr": 0.001}):
        assert not found.holds(params)


def test_scales_tell_the_axis_of_each_key() -> None:
    found = space(
        "{optimizer: [SGD, Adam], lrf: {uniform: [0, 1]}, weight_decay: {loguniform: [1e-5, 1e-2]}, "
        "ema: {grid: [0, 0.9]}, "
        "lr: {by: optimizer, cases: {SGD: {loguniform: [1e-3, 1]}}, else: {loguniform: [1e-4, 1e-2]}}, "
        "clip_grad: {by: optimizer, cases: {SGD: {uniform: [1, 2]}}, else: {loguniform: [1, 2]}}}"
    )
    assert found.scales == {
        "optimizer": "category",
        "lrf": "linear",
        "weight_decay": "log",
        "ema": "category",
        "lr": "log",
        "clip_grad": "linear",
    }


def test_a_condition_on_a_key_that_is_not_searched_is_resolved() -> None:
    config = CONFIG.model_copy(update={"optimizer": "AdamW"})
    assert space(f"{{{LR_BY}}}", config).domains == {"lr": Choice((0.001,))}
    assert refusals(f"{{{LR_BY}}}") == ["lr: there is no case for optimizer = auto: add one, or else"]


def test_a_chain_of_conditions_is_ordered_and_checked_with_its_own_values() -> None:
    found = space(
        "{clip_grad: {by: batch, cases: {8: [1]}, else: [2]}, batch: {by: optimizer, cases: {SGD: [8]}, else: [16]},"
        "optimizer: [SGD, Adam]}"
    )
    assert list(found.domains) == ["optimizer", "batch", "clip_grad"]
    assert [tuple(p.values()) for p in found.grid()] == [("SGD", 8, 1), ("Adam", 16, 2)]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("{lr_: [1]}", ["lr_: unknown key: did you mean lr"]),
        ("{epoch: [1]}", ["epoch: unknown key: "]),
        ("{fraction: [0.1]}", ["fraction: cannot be searched: trials would be measured on different data"]),
        ("{scaling.workers: [1, 2]}", ["scaling.workers: cannot be searched: it does not change what is learnt"]),
        ("{scaling: {workers: [1]}}", ["scaling: cannot be searched: it does not change"]),
        ("{epochs: [1]}", ["epochs: cannot be searched: it belongs to the budget"]),
        ("{imgsz: {int: [32, 64], step: 32}}", ["imgsz: is cached once per variant"]),
        ("{multi_scale: {by: amp, cases: {auto: {uniform: [0, 0.5]}}}}", ["multi_scale: is cached once per variant"]),
        ("{lr: {uniform: [-1, 0.5]}}", ["lr = -1.0: must be greater than 0"]),
        ("{lrf: {uniform: [0, 2]}}", ["lrf = 2.0: must be less than or equal to 1"]),
        ("{weight_decay: {normal: [1, 1]}}", ["weight_decay = -2.0: must be greater than or equal to 0 (a normal "]),
        ("{batch: {uniform: [16, 64]}}", ["batch = 16.0: must be a valid integer", "batch = 64.0: must be a"]),
        ("{optimizer: [SGD, sgd, Foo]}", ["optimizer = sgd: must be 'auto', 'SGD'", "optimizer = Foo: must be"]),
        ("{amp: [1]}", ["amp = 1: must be"]),
        ("{task: [detect]}", ["task: cannot be searched: trials could not be compared"]),
        ("{lr: {by: lr, cases: {1: [1]}}}", ["lr: by names the key itself"]),
        ("{lr: {by: optimiser, cases: {SGD: [1]}}}", ["lr: by: unknown key 'optimiser': did you mean optimizer"]),
        ("{lr: {by: lrf, cases: {1: [1]}}, lrf: {uniform: [0, 1]}}", ["lr: by: lrf has a range: a condition must be"]),
        (
            "{lr: {by: lrf, cases: {1: [1]}}, lrf: {by: lr, cases: {1: [1]}}}",
            ["lr: lr -> lrf -> lr depend on each other in a circle"],
        ),
        (
            "{lr: {by: optimizer, cases: {sgd: [1]}, else: [1]}, optimizer: [SGD]}",
            ["lr: case sgd: optimizer = sgd: must be 'auto', "],
        ),
        (
            "{lr: {by: optimizer, cases: {SGD: [1]}}, optimizer: [SGD, Adam, AdamW]}",
            ["lr: there is no case for optimizer = Adam:", "lr: there is no case for optimizer = AdamW:"],
        ),
        (
            "{lr: {by: optimizer, cases: {SGD: [-1]}, else: {uniform: [0, 1]}}, optimizer: [SGD, Adam, AdamW]}",
            [
                "lr = -1: must be greater than 0 (with optimizer = SGD)",
                "lr = 0.0: must be greater than 0 (with optimizer = Adam)",
            ],
        ),
        # A key that is wrong by itself does not make those that depend on it wrong too.
        ("{lr: {by: optimizer, cases: {SGD: [1]}}, optimizer: {choise: [SGD]}}", ["optimizer: unknown domain"]),
        ("{epochs: [1], lr: {uniform: [1, 0]}}", ["epochs: cannot be", "lr: the range 1 to 0 is reversed"]),
    ],
)  # fmt: skip
def test_a_space_that_is_wrong_tells_all_its_problems(text: str, messages: list[str]) -> None:
    found = refusals(text)
    assert [a[: len(b)] for a, b in itertools.zip_longest(found, messages, fillvalue="")] == messages


def test_a_value_is_checked_against_the_rest_of_the_config() -> None:
    detect = Config(data="digits", task="detect")
    assert refusals("{label_smoothing: [0, 0.1]}", detect) == [
        "label_smoothing = 0.1: task = detect: labels are smoothed for task: classify only; leave it out"
    ]
    assert parse_space({"label_smoothing": [0, 0.1]}, CONFIG)[1] == []


def test_an_empty_space_is_refused() -> None:
    found, problems = parse_space({}, CONFIG)
    assert found is None
    assert [p.key for p in problems] == ["tune.space"]


SEARCHABLE = {
    *("model", "pretrained", "freeze", "batch", "micro_batch", "imgsz", "optimizer", "lr", "lrf", "momentum"),
    *("weight_decay", "schedule", "warmup_epochs", "clip_grad", "ema", "sync_bn", "label_smoothing", "amp"),
    *("channels_last", "fliplr", "flipud", "scale", "multi_scale", "brightness", "contrast", "saturation", "hue"),
    *("seed", "compile"),
}
"""Written out, so that whoever adds a key to the schema decides whether it can be searched."""


def test_every_key_of_the_schema_is_either_searchable_or_locked() -> None:
    names = [key.name for key in schema_keys()]
    assert {name for name in names if not {name, name.split(".")[0]} & LOCKED.keys()} == SEARCHABLE
    assert not LOCKED.keys() - {part for name in names for part in (name, name.split(".")[0])}


def test_with_params_sets_dotted_keys_and_checks_them() -> None:
    changed = with_params(CONFIG, {"lr": 0.5, "scaling.workers": 2, "freeze": ["a.*"]})
    assert (changed.lr, changed.scaling.workers, changed.freeze) == (0.5, 2, ["a.*"])
    assert CONFIG.lr is None
    with pytest.raises(ValueError, match=r"^lr = -1: must be greater than 0; lrf = 2: must be less"):
        with_params(CONFIG, {"lr": -1, "lrf": 2})
    with pytest.raises(ValueError, match=r"unknown key 'lr\.x'"):
        with_params(CONFIG, {"lr.x": 1})


def test_the_default_space_searches_four_keys_about_the_defaults() -> None:
    found, problems = parse_space(default_space(64, 1438, 1), CONFIG)
    assert found
    assert not problems
    assert list(found.domains) == ["optimizer", "lr", "lrf", "batch"]
    assert found.domains["optimizer"] == Choice(("SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSProp"))
    assert found.leaf("lr", {"optimizer": "SGD"}) == LogUniform(3e-4, 0.3)
    assert (
        found.leaf("lr", {"optimizer": "AdamW"}) == found.leaf("lr", {"optimizer": "RMSProp"}) == LogUniform(3e-5, 0.03)
    )
    assert found.variants("batch") == [16, 32, 64, 128]


@pytest.mark.parametrize(
    ("batch", "train", "workers", "batches"),
    [
        (64, 100, 1, [16, 32, 64, 100]),
        (64, 20, 1, [16, 20]),
        (4, 100, 4, [4, 8]),
        (1, 100, 1, [1, 2]),
        (48, 999, 2, [12, 24, 48, 96]),
    ],
)
def test_default_batches_fit_the_data_and_the_workers(batch: int, train: int, workers: int, batches: list[int]) -> None:
    assert default_space(batch, train, workers)["batch"] == batches
