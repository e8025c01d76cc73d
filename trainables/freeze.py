"""Parts of a model that are not trained: its first stages, or what name patterns match."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from math import inf
from types import MethodType
from typing import Any

from torch import nn

from trainables.registry import did_you_mean

Stages = Sequence[Sequence[str]]
"""In the order in which an image goes through them: the names of each stage's modules and parameters."""

HEADS = frozenset(
    ("fc", "classifier", "head", "heads", "head_dist", "last_linear", "logits", "pre_logits", "fc_norm", "head_norm")
)
BODIES = frozenset(("features", "blocks", "stages", "layers", "body", "backbone", "encoder", "trunk", "trunk_output"))
"""What a model's head, and the container of its stages, are usually called."""
NEARLY_ALL = 0.85
"""Part of the parameters from which a container is opened: its children are the stages. Not one of several blockN."""
MUCH = 0.3
"""The same where the name says that it is a body."""


def freeze(model: nn.Module, what: int | Sequence[str], stages: Stages | None = None) -> list[str]:
    """Freeze the first stages of a model, or what patterns match. Returns the names of the frozen parameters.

    what: number of stages; or patterns (``*``, ``?``, ``[...]``), each of which must match names of modules, which are
    frozen whole, or of parameters.
    stages: those of the model; None: as `find_stages` finds them.

    Frozen parameters require no gradient, and norms with running statistics in frozen parts stay in eval mode whatever
    `train` says. State dicts, and copies of the model, are as before. Raises ValueError, which begins with "freeze".
    """
    frozen = check(model, what, stages)
    chosen = set(frozen)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in chosen:
            parameter.requires_grad_(False)
    whole = _whole(model, what, stages)
    for name, module in model.named_modules():
        if not hasattr(module, "running_mean"):
            continue
        own = [f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)]
        if (own and chosen.issuperset(own)) or any(_is_below(name, part) for part in whole):
            module.train = MethodType(_stay_in_eval, module)
            module.eval()
    return frozen


def check(model: nn.Module, what: int | Sequence[str], stages: Stages | None = None) -> list[str]:
    """What `freeze` would freeze. The model may be on the meta device. Raises as it does."""
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    whole = _whole(model, what, stages)
    frozen = [name for name in parameters if any(_is_below(name, part) for part in whole)]
    left = {id(p) for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad} - {
        id(p) for n, p in model.named_parameters(remove_duplicate=False) if n in set(frozen)
    }
    if frozen and not left:
        raise ValueError(f"freeze = {_shown(what)} leaves nothing to train: {_choices(model, stages)}")
    return frozen


def find_stages(model: nn.Module) -> list[list[str]]:
    """The stages of a model in their order, without its head: what ``freeze: N`` counts.

    With layer1 ... layer4: the stem, then these. With a container that holds nearly everything but the head
    (`features`, `blocks`): its children, and what lies before and after it. Of a detector: those of its backbone's
    body. Norms, and a model's own parameters, belong to the stage beside them.
    """
    prefix, body, has_head = _body_of(model)
    units = _units(body, prefix, has_head)
    stages: list[list[str]] = []
    loose: list[str] = []
    for name, module in units:
        if module is None:  # a parameter of a container itself, such as a class token
            (stages[0] if stages else loose).append(name)
        elif stages and (_is_norm(module) or _is_stem(stages, name, body, prefix)):
            stages[-1].append(name)
        else:
            stages.append([*loose, name])
            loose = []
    return stages


# --------------------------------------------------------------------------------------- finding the stages


def _body_of(model: nn.Module) -> tuple[str, nn.Module, bool]:
    """The prefix of what has the stages, it itself, and whether it ends in a head."""
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module) or not (hasattr(model, "rpn") or hasattr(model, "anchor_generator")):
        return "", model, True
    for name in ("body", "features"):
        if isinstance(inner := getattr(backbone, name, None), nn.Module):
            return f"backbone.{name}.", inner, False
    return "backbone.", backbone, False


def _units(body: nn.Module, prefix: str, has_head: bool) -> list[tuple[str, nn.Module | None]]:
    """The layers and blocks of a model in order, with containers opened, and without the head."""
    named_head = has_head and any(_is_head(name) for name, _ in _children(body))
    units = list(_opened(body, prefix, _size(body, outside_head=has_head)))
    if has_head and not named_head and not any(_is_head(n.rsplit(".", 1)[-1]) for n, _ in units):
        modules = [index for index, (_, module) in enumerate(units) if module is not None]
        del units[modules[-1] if modules else len(units) :]  # the last one with parameters
    elif has_head:
        units = [(name, module) for name, module in units if not _is_head(name.rsplit(".", 1)[-1])]
    return units


def _opened(module: nn.Module, prefix: str, total: int) -> Iterator[tuple[str, nn.Module | None]]:
    """A backbone that was cut into two (as SSDlite's) is opened too."""
    for name, _ in module.named_parameters(recurse=False):
        yield prefix + name, None
    children = list(_children(module))
    halves = len(children) == 2 and all(type(child) is nn.Sequential for _, child in children)
    for name, child in children:
        size = _size(child, outside_head=True)
        numbered = sum(name.rstrip("0123456789") == other.rstrip("0123456789") for other, _ in children) > 1
        limit = 0.0 if halves else MUCH if name in BODIES else inf if numbered else NEARLY_ALL
        if not _is_head(name) and size >= limit * total and any(True for _ in child.children()):
            yield from _opened(child, f"{prefix}{name}.", total)
        else:
            yield prefix + name, child


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Those that have parameters."""
    return ((name, child) for name, child in module.named_children() if any(True for _ in child.parameters()))


def _size(module: nn.Module, outside_head: bool) -> int:
    named = [(n, p) for n, p in module.named_parameters() if not (outside_head and _is_head(n.split(".")[0]))]
    return sum(parameter.numel() for _, parameter in named)


def _is_head(name: str) -> bool:
    return name.lower() in HEADS or name.lower().startswith("aux")


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not any(True for _ in _children(module))


def _is_stem(stages: Stages, name: str, body: nn.Module, prefix: str) -> bool:
    """Whether a layer belongs to the first stage, as it lies before layer1 of a residual network."""
    return hasattr(body, "layer1") and len(stages) == 1 and not name.startswith(f"{prefix}layer")


# ---------------------------------------------------------------------------------------- what is to be frozen


def _whole(model: nn.Module, what: int | Sequence[str], stages: Stages | None) -> list[str]:
    """The names of the modules and parameters that are frozen whole."""
    if isinstance(what, int):
        found = find_stages(model) if stages is None else stages
        if not 0 <= what <= len(found):
            raise ValueError(f"freeze = {what} is out of range: {_choices(model, stages)}")
        return [name for stage in found[:what] for name in stage]
    patterns = [what] if isinstance(what, str) else list(what)
    modules = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    names = [*modules, *(name for name, _ in model.named_parameters(remove_duplicate=False))]
    whole: list[str] = []
    for pattern in patterns:
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            near = did_you_mean(pattern.removesuffix(".*").removesuffix("*"), modules)
            raise ValueError(f"freeze: {pattern!r} matches nothing in the model: {near} {_choices(model, stages)}")
        whole += matched
    return list(dict.fromkeys(whole))


def _is_below(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _choices(model: nn.Module, stages: Stages | None) -> str:
    """What can be frozen, for an error."""
    found = find_stages(model) if stages is None else stages
    listed = [f"{number} {_brief(stage)}" for number, stage in enumerate(found, 1)]
    shown = ", ".join(listed if len(listed) <= 12 else [*listed[:9], "...", listed[-1]])
    top = ", ".join(name for name, _ in _children(model))
    return f"the model has {len(found)} stages ({shown or 'none'}); its parts are {top}"


def _brief(stage: Sequence[str]) -> str:
    return stage[0] if len(stage) == 1 else f"{stage[0]} to {stage[-1]}"


def _shown(what: Any) -> str:
    return str(what) if isinstance(what, int) else ", ".join(what)


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    """In the place of a frozen norm's `train`."""
    return nn.Module.train(module, False)
