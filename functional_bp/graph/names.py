"""Values have the names that a person gave: of arguments, paths, closures; letters for the rest."""

from __future__ import annotations

import functools
import inspect
import string
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from itertools import chain, count, product
from types import CodeType, MappingProxyType
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn
from jax.tree_util import DictKey, SequenceKey, keystr, tree_flatten_with_path

from functional_bp import _jax
from functional_bp.graph.nested import WITH_OWN_RULE, called, every_graph


def function_name(fun: Callable[..., Any]) -> str:
    """Say what a person calls the function: its name, that inside a partial, or its class's."""
    while isinstance(fun, functools.partial):
        fun = fun.func
    return getattr(fun, "__name__", None) or type(fun).__name__


def argument_names(
    fun: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[str]:
    """Name every leaf of ``(args, kwargs)``, in the order in which JAX flattens them.

    The parameter's name and the path below it: ``params['W1']``, ``batch.x``, ``xs[0]``,
    ``options['rate']``. Without a signature (a built-in function): ``args[0]``.

    >>> argument_names(lambda params, *xs: None, ({"W": 1.0, "b": 2.0}, 3.0, (4.0,)), {})
    ["params['W']", "params['b']", 'xs[0]', 'xs[1][0]']
    """
    heads = positional_names(fun, len(args))
    names = []
    for path, _ in tree_flatten_with_path((tuple(args), dict(kwargs)))[0]:
        side, first, *rest = path
        if isinstance(side, SequenceKey) and side.idx == 0:
            head = heads[first.idx]
        else:
            head = first.key if isinstance(first, DictKey) else keystr((first,))
        names.append(f"{head}{keystr(tuple(rest))}")
    return names


def positional_names(fun: Callable[..., Any], number: int) -> list[str]:
    """Name ``number`` positional arguments as the function's parameters are called."""
    try:
        parameters = list(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    plain = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    star = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "args")
    first = len(plain)
    return [plain[i] if i < first else f"{star}[{i - first}]" for i in range(number)]


def misfit(
    fun: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any] = MappingProxyType({})
) -> tuple[inspect.Signature, str] | None:
    """Return the signature that arguments do not fit, and why; None where they do."""
    try:
        signature = inspect.signature(fun)
    except (TypeError, ValueError):  # of a builtin
        return None
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return signature, str(error)
    return None


def closure_names(fun: Callable[..., Any], consts: Sequence[Any]) -> list[str | None]:
    """For each constant find the variable outside ``fun`` that holds it, None where none does.

    Looks at what the function and the functions written inside it close over, at the globals that
    they name, and at the attributes of the object that it is a method of (``self.W``).
    """
    arrays = [getattr(const, "val", const) for const in consts]
    if not consts:
        return []
    found: dict[int, str] = {}
    for name, value in _outside(fun).items():
        for path, leaf in tree_flatten_with_path(value)[0]:
            if isinstance(getattr(leaf, "shape", None), tuple):
                found.setdefault(id(leaf), name + keystr(path))
    return [found.get(id(const)) or found.get(id(a)) for const, a in zip(consts, arrays)]


def _outside(fun: Any) -> dict[str, Any]:
    """What a function can see from where it was written, by name."""
    while isinstance(fun, functools.partial) or hasattr(fun, "__wrapped__"):
        fun = fun.func if isinstance(fun, functools.partial) else fun.__wrapped__
    if not inspect.isroutine(fun) and not inspect.isclass(fun):
        fun = getattr(fun, "__call__", fun)  # noqa: B004  (the bound method of a callable object)
    seen: dict[str, Any] = {}
    if inspect.ismethod(fun):
        held = getattr(fun.__self__, "__dict__", {})
        seen = {f"self.{name}": value for name, value in held.items()}
        fun = fun.__func__
    if not inspect.isfunction(fun):
        return seen
    for name, cell in zip(fun.__code__.co_freevars, fun.__closure__ or ()):
        try:
            seen[name] = cell.cell_contents
        except ValueError:  # a variable that has not been given a value yet
            continue
    named = {n for n in _names_in(fun.__code__) if n in fun.__globals__ and n not in seen}
    return {**seen, **{n: fun.__globals__[n] for n in sorted(named)}}


def _names_in(code: CodeType) -> set[str]:
    """The global names that a function's code, and the code inside it, mention."""
    inside = [const for const in code.co_consts if isinstance(const, CodeType)]
    return set(code.co_names).union(*map(_names_in, inside))


def output_paths(out_shape: Any) -> list[str]:
    """Return a name for every leaf of an output: ``result``, ``result['loss']``, ``result[0]``."""
    return ["result" + keystr(path) for path, _ in tree_flatten_with_path(out_shape)[0]]


def inner_names(
    jaxpr: Jaxpr, operands: Sequence[str | None], same: Sequence[bool]
) -> list[str | None]:
    """Name a nested graph's inputs: as its function calls them, or else as the operand is called.

    Args:
        jaxpr: the nested graph.
        operands: the name of the operand that feeds each input, None where there is none.
        same: whether the input is that operand, unchanged.
    """
    given = getattr(jaxpr.debug_info, "arg_names", None) or ()
    if len(given) != len(jaxpr.invars):
        given = (None,) * len(jaxpr.invars)
    return [own or (outer if fixed else None) for own, outer, fixed in zip(given, operands, same)]


def inner_function(jaxpr: Jaxpr) -> str:
    """Return the name of the function that a nested graph was traced from, "" for a lambda."""
    name = getattr(jaxpr.debug_info, "func_name", "") or ""
    return "" if not name.isidentifier() else name


def operation_name(eqn: JaxprEqn) -> str:
    """Name an operation as a person does: ``relu``, of a function with a rule of its own.

    Not so what wraps a person's function in a library.
    """
    own, graph = eqn.primitive.name, called(eqn)
    if own not in WITH_OWN_RULE or graph is None:
        return "checkpoint" if own == "remat2" else own
    jaxpr = _jax.open_jaxpr(graph)[0]
    is_wrapper = _jax.is_of_another_library(getattr(jaxpr.debug_info, "func_filename", None) or "")
    return own if is_wrapper else inner_function(jaxpr).strip("_") or own


def is_tag(eqn: JaxprEqn) -> bool:
    """Tell whether the equation is a ``name`` tag: the identity, with a name for its value."""
    return eqn.primitive.name == "name" and "name" in eqn.params


def given_names(jaxpr: Jaxpr) -> set[str]:
    """Return all names that stand in a graph and those nested in it: arguments and tags."""
    names: set[str] = set()
    for graph in every_graph(jaxpr):
        names.update(filter(None, getattr(graph.debug_info, "arg_names", None) or ()))
        names.update(eqn.params["name"] for eqn in graph.eqns if is_tag(eqn))
    return names


def letters(reserved: Container[str]) -> Iterator[str]:
    """Go through a, b, …, z, aa, ab, …, without the reserved ones.

    >>> names = letters({"b"})
    >>> next(names), next(names)
    ('a', 'c')
    """
    words = (product(string.ascii_lowercase, repeat=length) for length in count(1))
    for word in map("".join, chain.from_iterable(words)):
        if word not in reserved:
            yield word


def unique(name: str, taken: Container[str]) -> str:
    """Return the name, or with a number behind it if it is taken: ``h``, ``h_2``, ``h_3``."""
    if name not in taken:
        return name
    return next(f"{name}_{i}" for i in count(2) if f"{name}_{i}" not in taken)


def leaf_is_array(leaf: Any) -> bool:
    """Tell whether JAX can trace the value: an array, a number, ``jax.ShapeDtypeStruct``, a key."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return True
    try:
        jax.typeof(leaf)
    except TypeError:
        return False
    return True
