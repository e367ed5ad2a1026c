"""The definition of a function is found wherever its source is, and it is that function's own."""

from __future__ import annotations

import ast
import functools
import linecache
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

from functional_bp.definitions import definition, file_of, unwrapped


def text(function: Callable[..., Any]) -> str:
    found = definition(function)
    assert found is not None and Path(found.file).name == Path(__file__).name
    return ast.unparse(found.node)


def of_its_kind(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@of_its_kind
@of_its_kind
def decorated(x: int) -> int:
    return x


class Holder:
    def method(self, x: int) -> int:
        return x + 1


def test_lambdas_on_a_line_are_told_apart() -> None:
    # fmt: off
    first, second, other = lambda x: x + 1, lambda x: x - 1, lambda x, *, y: x * y
    # fmt: on
    assert [text(f) for f in (first, second)] == ["lambda x: x + 1", "lambda x: x - 1"]
    assert text(other) == "lambda x, *, y: x * y"
    nested = lambda x: lambda x: x / 2
    assert text(nested(0)) == "lambda x: x / 2" and text(nested).startswith("lambda x: lambda")


def test_decorated_functions_methods_and_inner_functions() -> None:
    def decorated(x: int) -> int:  # of the same name as the one above
        return 2 * x

    outer = globals()["decorated"]
    assert text(outer).endswith("return x") and text(decorated).endswith("return 2 * x")
    found = definition(outer)
    assert found is not None and found.line == found.node.lineno - 2
    assert text(Holder().method) == text(Holder.method)


def test_a_cell_of_a_notebook_has_its_source() -> None:
    source, file = "f = lambda x: x**2\ng = lambda x: x**3\n", "<ipython-input-7-of-this-test>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    try:
        namespace: dict[str, Any] = {}
        exec(compile(source, file, "exec"), namespace)
        found = definition(namespace["g"])
        assert found is not None and (found.file, found.line) == (file, 2)
        assert ast.unparse(found.node) == "lambda x: x ** 3"
    finally:
        del linecache.cache[file]


@pytest.mark.parametrize("function", [len, jax.jit(lambda x: x), int, functools.partial(max, 1)])
def test_what_is_not_written_in_python_has_none(function: Any) -> None:
    assert definition(function) is None


def test_without_a_source_there_is_none() -> None:
    namespace: dict[str, Any] = {}
    exec("f = lambda x: x", namespace)
    assert definition(namespace["f"]) is None and file_of(namespace["f"]) == "<string>"


def test_what_is_around_a_function_is_taken_off() -> None:
    inner = lambda x, y: x * y
    wrapped = functools.partial(jax.jit(functools.partial(inner, y=2)))
    assert unwrapped(wrapped) is inner and file_of(wrapped) == __file__
    assert unwrapped(len) is len and file_of(len) is None and file_of(None) is None
