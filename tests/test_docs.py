"""Docstrings of everything public: arguments, errors and sources are named, and examples run."""

import doctest
import importlib
import inspect
import re
import sys

import pytest
import torch

PLACES = ("fastdl", "fastdl.nn", "fastdl.functional", "fastdl.optim", "fastdl.init", "fastdl.data")
RAISES_NOTHING = {"fastdl.convert", "fastdl.revert", "fastdl.init.Stream"}
RAISES_NOTHING |= {f"fastdl.init.{name}_" for name in ("zeros", "ones", "constant")}
TORCH = {"nn": torch.nn, "functional": torch.nn.functional, "optim": torch.optim, "init": torch.nn.init}


def is_public(name, thing):
    if name.startswith("_") or not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return False
    return thing.__module__.startswith("fastdl")


def public():
    for place in PLACES:
        module = importlib.import_module(place)
        for name in dir(module):
            if is_public(name, getattr(module, name)):
                yield f"{place}.{name}", getattr(module, name)


PUBLIC = dict(public())
everything = pytest.mark.parametrize("name", PUBLIC)


def docs(name):
    """Return a docstring, and those to which it hands over with: as in `fastdl.place.Name`."""
    text = PUBLIC[name].__doc__ or ""
    return text + "".join(docs(other) for other in re.findall(r"as in\s+`(fastdl\.[\w.]+)`", text) if other != name)


def arguments(thing):
    """Return the names of the arguments, torch's too where a class hands them on."""
    classes = [c for c in thing.__mro__ if "__init__" in vars(c)] if inspect.isclass(thing) else [thing]
    for c in classes if inspect.isclass(thing) else classes[:1]:
        if c in (object, torch.nn.Module, dict, torch.optim.Optimizer):
            continue
        call = c.__init__ if inspect.isclass(c) else c
        parameters = inspect.signature(call).parameters.values()
        yield from (p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != "self")
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return


def test_there_is_something_to_look_at():
    assert len(PUBLIC) >= 50
    assert {"params", "momentum", "l1"} <= set(arguments(PUBLIC["fastdl.optim.SGD"]))


@everything
def test_every_argument_is_named(name):
    text = docs(name)
    assert [a for a in arguments(PUBLIC[name]) if not re.search(rf"(?<!\w){a}(?!\w)", text)] == []


@everything
def test_errors_are_named(name):
    assert name in RAISES_NOTHING or re.search(r"\w(Error|Warning)\b|[Rr]aises? torch's errors", docs(name))


@everything
def test_torchs_counterpart_or_a_source_is_named(name):
    _, place, *rest = name.split(".")
    if rest and hasattr(TORCH.get(place), rest[0]):
        assert "torch" in docs(name)


@everything
def test_first_line_is_a_sentence(name):
    first = PUBLIC[name].__doc__.split("\n")[0]
    assert first[0].isupper() or first.startswith(("torch", "dropout("))
    assert first[-1] in ".:"


@pytest.mark.parametrize("module", sorted({thing.__module__ for thing in PUBLIC.values()}))
def test_examples_run(module):
    found = doctest.testmod(sys.modules[module], optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0


def test_there_are_examples():
    shown = [name for name, thing in PUBLIC.items() if ">>> " in (thing.__doc__ or "")]
    assert {name.split(".")[1] for name in shown} >= {"matmul", "nn", "functional", "optim", "init", "data"}


def test_a_bare_docstring_is_caught(monkeypatch):
    monkeypatch.setattr(PUBLIC["fastdl.functional.linear"], "__doc__", "Multiply.")
    with pytest.raises(AssertionError):
        test_every_argument_is_named("fastdl.functional.linear")
    with pytest.raises(AssertionError):
        test_errors_are_named("fastdl.functional.linear")
