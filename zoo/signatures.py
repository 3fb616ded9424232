"""Which keyword arguments a class or function accepts, following ``**kwargs`` to where they go."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

_SUPER = object()


@cache
def accepted_arguments(target: Callable[..., Any]) -> frozenset[str] | None:
    """Names of the keyword arguments that a call accepts, or None if that cannot be told.

    Where ``**kwargs`` is only passed on, to the parent's constructor or to a function or class of
    the same module's namespace, the names are also those of that target.
    """
    names: set[str] = set()
    for function in _constructors(target):
        parameters = _parameters(function)
        if parameters is None:
            return None
        names |= {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)} - {
            "self",
            "cls",
        }
        variable = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
        if variable is None:
            return frozenset(names)
        destination = _destination(function, variable)
        if destination is None:
            return None
        if destination is not _SUPER:
            further = accepted_arguments(destination)
            return None if further is None else frozenset(names | further)
    return None


def _constructors(target: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """A function itself, or the constructors of a class and its parents in order."""
    if not inspect.isclass(target):
        yield target
        return
    for cls in target.__mro__:
        if "__init__" in vars(cls) and cls is not object:
            yield vars(cls)["__init__"]


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def _destination(function: Callable[..., Any], variable: str) -> Any:
    """Where ``**variable`` goes: the parent's constructor, a callable, or None if elsewhere too."""
    function = inspect.unwrap(function)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and any(k.arg is None and _is_name(k.value, variable) for k in node.keywords)
    ]
    uses = [node for node in ast.walk(tree) if _is_name(node, variable)]
    if len(calls) != 1 or len(uses) != 1:
        return None
    called = calls[0].func
    if isinstance(called, ast.Attribute) and called.attr == "__init__":
        return _SUPER if _is_super(called.value) else None
    if isinstance(called, ast.Name):
        return getattr(function, "__globals__", {}).get(called.id)
    return None


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _is_super(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _is_name(node.func, "super") and not node.args
