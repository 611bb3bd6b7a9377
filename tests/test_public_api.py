"""What `__all__` of `custody`, of its rooms and of their public modules promises is there, and documented."""

import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import custody

ROOMS = [name for _, name, is_room in pkgutil.iter_modules(custody.__path__) if is_room]


def public_modules() -> list[str]:
    """Return the dotted names of all modules that are public."""
    found = []
    for name in custody.__all__:
        module = importlib.import_module(f"custody.{name}") if name != "connect" else None
        if module is not None:
            inner = [f"custody.{name}.{one}" for one in module.__all__] if name in ROOMS else [f"custody.{name}"]
            found += inner
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_says_what_is_public(room: str) -> None:
    """A room's `__all__` names modules of it, in order; without one nobody would know what may be relied on."""
    module = importlib.import_module(f"custody.{room}")
    assert module.__all__ == sorted(module.__all__)
    there = {name for _, name, _ in pkgutil.iter_modules(module.__path__)}
    assert set(module.__all__) <= there


@pytest.mark.parametrize("name", public_modules())
def test_public_names_are_there_and_documented(name: str) -> None:
    """Each public name is defined where it is named, and says what it is."""
    module: ModuleType = importlib.import_module(name)
    assert module.__doc__
    assert module.__all__, "a public module names what is public in it"
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__ == name, f"{public} is of {value.__module__}"
            assert inspect.getdoc(value), f"{public} has no docstring"


@pytest.mark.parametrize("name", public_modules())
def test_public_methods_are_documented(name: str) -> None:
    """So is each public method of a public class."""
    module = importlib.import_module(name)
    for public in module.__all__:
        value = getattr(module, public)
        for attribute, member in vars(value).items() if inspect.isclass(value) else ():
            if not attribute.startswith("_") and inspect.isfunction(member):
                assert inspect.getdoc(member) or inspect.getdoc(getattr(value, attribute)), f"{public}.{attribute}"


def test_internal_modules_name_nothing() -> None:
    """A module with `__all__` is public, so that one look says which are."""
    public = {*public_modules(), "custody", *(f"custody.{room}" for room in ROOMS)}
    for _, name, _ in pkgutil.walk_packages(custody.__path__, "custody."):
        if name not in public and name != "custody.__main__":
            assert not hasattr(importlib.import_module(name), "__all__"), f"{name} has __all__, and is no public module"


def test_connect_is_loaded_when_it_is_asked_for() -> None:
    """`custody.connect` is DuckDB's door; to import custody needs neither DuckDB nor Arrow (tests/test_loading.py)."""
    assert custody.connect is importlib.import_module("custody.query.connect").connect
    with pytest.raises(AttributeError, match="nothing_such"):
        custody.nothing_such  # noqa: B018
