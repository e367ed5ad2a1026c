"""The same function, whose gradient needs no more memory than a budget: parts of it run again.

A value that a rule names is kept, or made again when its turn comes, or only ever there in pieces.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import jax
from jax.core import Tracer

from functional_bp import _jax
from functional_bp.engine.higher_order import has_tangent, only
from functional_bp.errors import describe
from functional_bp.graph import names
from functional_bp.memory.allocation import CompiledProgram
from functional_bp.memory.budgets import PLAIN, FlatGraph, Recomputation, Search, share_of
from functional_bp.memory.footprint import FootprintError, abstract
from functional_bp.memory.schedule import Schedule
from functional_bp.vjps.remat import without_calls


class RecomputedFunction:
    """A function whose gradient makes parts of the function again; ``bp.recompute`` makes it.

    Attributes:
        fun: the function as it was given.
        budget, argnums, has_aux: as they were given.
        choices: what was chosen, for each structure and shapes of arguments.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        budget: Any,
        argnums: Sequence[int],
        has_aux: bool = False,
        owner: Any = None,
    ) -> None:
        bound = fun if owner is None else MethodType(fun, owner)
        functools.update_wrapper(self, bound, updated=())
        self.fun, self.budget, self.argnums, self.has_aux = fun, budget, tuple(argnums), has_aux
        self.choices: dict[Any, Recomputation] = {}
        self._owner = owner  # what a method is bound to

    def __get__(self, instance: Any, owner: Any = None) -> RecomputedFunction:
        """Return it bound, as a method: ``argnums`` count what stands behind ``self``."""
        if instance is None:
            return self
        bound = RecomputedFunction(self.fun, self.budget, self.argnums, self.has_aux, instance)
        bound.choices = self.choices
        return bound

    def _call(self, args: Any, kwargs: Any) -> _Call:
        """Flatten a call; arrays of an object that is a pytree are differentiated with the rest."""
        if self._owner is None:
            return _Call(self.fun, args, kwargs, self.argnums, self.has_aux)
        argnums = [k + (k >= 0) for k in self.argnums]
        if _is_module(self._owner):
            argnums = [0, *argnums]
        return _Call(self.fun, (self._owner, *args), kwargs, argnums, self.has_aux)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the function returns."""
        call = self._call(args, kwargs)
        choice = self._choice(call)
        return call.result(call.graph.following(choice.schedule)((), *call.consts, *call.leaves))

    def choice(self, *args: Any, **kwargs: Any) -> Recomputation:
        """Say what is made again for arguments of these shapes; nothing runs.

        Args:
            *args: arrays, or ``jax.ShapeDtypeStruct`` in their place.
            **kwargs: further arguments.
        """
        return self._choice(self._call(args, kwargs))

    def _choice(self, call: _Call) -> Recomputation:
        if call.key not in self.choices:
            self.choices[call.key] = _search(self.fun, call).within(self.budget)
        return self.choices[call.key]

    def __str__(self) -> str:
        name = names.function_name(self.fun)
        if not self.choices:
            return f"{name}, to be differentiated within {self.budget!r}: not called yet"
        return "\n".join(f"{name} {choice}" for choice in self.choices.values())

    def __repr__(self) -> str:
        return f"<recompute of {names.function_name(self.fun)} within {self.budget!r}>"


def recompute(
    fun: Callable[..., Any],
    budget: int | float | str,
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
) -> RecomputedFunction:
    """Return the same function, whose gradient by ``bp.grad`` needs no more than a budget.

    Rows that do not know each other run in pieces, each of which is reversed as soon as it has run.
    What else the reverse sweep needs is made again where that is cheap, instead of being kept;
    loops (``lax.scan``) run again in chunks. For the shapes of each call, programs are compiled
    until one is found that keeps the budget, on the platform that JAX uses here, at the fewest
    operations.

    This holds for ``bp.grad``. ``jax.grad`` of the result is right too, but on a CPU it saves
    nothing in code without loops (JAX 0.10).

    Args:
        fun: takes and returns pytrees of arrays; what is no array among its arguments stays as it
            is. Or a method, ``@functools.partial(bp.recompute, budget=0.5)``, or a module that is
            a pytree: its own arrays are differentiated as well.
        budget: what the program of value and gradient may need, arguments and results included:
            bytes, or a text such as "2 GiB"; a fraction below 1, or "40%", is one of the
            temporaries that it needs with nothing made again. Of one device, where arrays have
            shardings.
        argnums: the arguments that will be differentiated.
        has_aux: ``fun`` returns ``(output, auxiliary)``, of which the auxiliary will not be.

    Returns:
        A function; printed, it says what is made again. ``.choice(*args)`` says so beforehand.

    Raises:
        BudgetError: when called, if no choice keeps the budget; the message says what the least is,
            and what fills it.
    """
    share_of(budget)
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if _is_module(fun):
        return RecomputedFunction(_called(type(fun)), budget, positions, has_aux, fun)
    return RecomputedFunction(fun, budget, positions, has_aux)


def _called(kind: Any) -> Callable[..., Any]:
    """Return the function that calls an object of a class, under the name of the class."""

    @functools.wraps(kind.__call__)
    def call(module: Any, *args: Any, **kwargs: Any) -> Any:
        return module(*args, **kwargs)

    call.__name__ = kind.__name__
    return call


def _is_pair(out: Any, fun: Callable[..., Any]) -> bool:
    """Say that a function with an auxiliary output returned a pair.

    Raises:
        FootprintError: it did not.
    """
    if isinstance(out, tuple) and len(out) == 2:
        return True
    raise FootprintError(
        f"with has_aux=True, {names.function_name(fun)} has to return (output, auxiliary)",
        got=describe(out),
    )


def _is_module(owner: Any) -> bool:
    """Say whether an object is a pytree that holds arrays, as a module of Equinox is."""
    return any(leaf is not owner and _is_array(leaf) for leaf in jax.tree.leaves(owner))


class _Call:
    """A call of the function is a flat graph without calls, and its arguments."""

    out_tree: Any
    fixed_outs: list[Any]
    seeded: list[bool]

    def __init__(
        self,
        fun: Callable[..., Any],
        args: Any,
        kwargs: Any,
        argnums: Sequence[int],
        has_aux: bool = False,
    ) -> None:
        argnums = _positions(argnums, len(args), len(kwargs), names.function_name(fun))
        flat_args, tree = jax.tree.flatten((args, kwargs))
        trained = jax.tree.leaves(
            tuple(jax.tree.map(lambda _, k=k: k in argnums, arg) for k, arg in enumerate(args))
        )
        trained += [False] * (len(flat_args) - len(trained))
        is_traced = [
            _is_array(leaf) or on and names.leaf_is_array(leaf)
            for on, leaf in zip(trained, flat_args)
        ]
        self.leaves: list[Any] = list(only(flat_args, is_traced))
        shapes = list(map(_shape_of, self.leaves))

        def flat(*leaves: Any) -> list[Any]:
            given = iter(leaves)
            whole = [next(given) if on else leaf for on, leaf in zip(is_traced, flat_args)]
            inner_args, inner_kwargs = jax.tree.unflatten(tree, whole)
            out = fun(*inner_args, **inner_kwargs)
            found, self.out_tree = jax.tree.flatten(out)
            first = out[0] if has_aux and _is_pair(out, fun) else out
            counts = jax.tree.structure(first).num_leaves
            seeded = [k < counts for k in range(len(found))]
            self.seeded = [on for on, leaf in zip(seeded, found) if names.leaf_is_array(leaf)]
            self.fixed_outs = [None if names.leaf_is_array(leaf) else leaf for leaf in found]
            return [leaf for leaf in found if names.leaf_is_array(leaf)]

        jaxpr, self.consts = _jax.open_jaxpr(jax.make_jaxpr(flat)(*shapes))
        inputs = [*jaxpr.constvars, *jaxpr.invars]  # closures' arrays are arguments like others
        unnamed = jaxpr.debug_info.with_unknown_names()
        graph, made = without_calls(jaxpr.replace(constvars=[], invars=inputs, debug_info=unnamed))
        assert not made
        name = names.function_name(fun)
        marked = [False] * len(self.consts) + only(trained, is_traced)
        active = [on and has_tangent(v.aval) for on, v in zip(marked, graph.invars, strict=True)]
        if not any(active):
            raise FootprintError(
                f"nothing of {name} is differentiated",
                got=f"argnums={argnums}, of which nothing is an array of real or complex numbers",
                do="say with argnums which arguments will be",
            )
        seeded = [on and has_tangent(v.aval) for on, v in zip(self.seeded, graph.outvars)]
        every = (*map(_shape_of, self.consts), *shapes)
        self.graph = FlatGraph(name, graph, tuple(active), tuple(seeded), every)
        fixed = [repr(leaf) for on, leaf in zip(is_traced, flat_args) if not on]
        operations = tuple(eqn.primitive.name for eqn in graph.eqns)
        _, _, *kind = self.graph
        self.key = tree, str(kind), tuple(fixed), operations

    def result(self, outs: Sequence[Any]) -> Any:
        """Return what the function returned; what is no array was told when it was traced."""
        found = iter(outs)
        leaves = [next(found) if fixed is None else fixed for fixed in self.fixed_outs]
        return jax.tree.unflatten(self.out_tree, leaves)


_searches: WeakKeyDictionary[Any, dict[Any, Search]] = WeakKeyDictionary()


def _search(fun: Callable[..., Any], call: _Call) -> Search:
    """Return the search for a function and shapes, the same for all budgets."""
    try:
        known = _searches.setdefault(fun, {})
    except TypeError:  # it has no hash, or no weak reference
        known = {}
    if call.key not in known:
        known[call.key] = Search(call.graph)
    return known[call.key]


def _positions(argnums: Sequence[int], count: int, more: int, name: str) -> tuple[int, ...]:
    """Count positions from the front; those of ``more`` arguments given by keyword are let be.

    Raises:
        FootprintError: one is beyond the arguments.
    """
    if not all(-count <= k < count + more for k in argnums):
        raise FootprintError(
            f"argnums of {name} is beyond the arguments",
            got=f"argnums={argnums}",
            expected=f"{-count} to {count - 1}",
        )
    return tuple(k % count for k in argnums if k < count)


def _is_array(leaf: Any) -> bool:
    """Say whether a value is traced: Python's numbers, texts and functions stay as they are."""
    return not isinstance(leaf, int) and names.leaf_is_array(leaf)


def _shape_of(leaf: Any) -> Any:
    if isinstance(leaf, Tracer):
        aval: Any = jax.typeof(leaf)
        return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
    return abstract(leaf)


# A larger program, in which a function stands that is differentiated: a training step.

Chooser = Callable[["_Call"], Schedule]  # says of a function's graph what of it is made again


def rescheduled(
    fun: Callable[..., Any], choose: Chooser, has_aux: bool = False
) -> Callable[..., Any]:
    """Return the same function of what is differentiated, under the schedule of its graph."""

    @functools.wraps(fun)
    def run(*args: Any) -> Any:
        call = _Call(fun, args, {}, range(len(args)), has_aux)
        schedule = choose(call)
        if not schedule.flops:
            return fun(*args)
        return call.result(call.graph.following(schedule)((), *call.consts, *call.leaves))

    return run


def within(
    budget: Any,
    trace: Callable[[Chooser], Any],
    program: Callable[[Schedule], CompiledProgram],
) -> Recomputation:
    """Choose a schedule by the memory of a program in which a ``rescheduled`` function stands.

    Args:
        budget: of that program, as ``recompute`` takes it.
        trace: traces the program with a chooser.
        program: compiles it under a schedule.

    Raises:
        BudgetError: no choice keeps the budget.
    """
    calls: list[_Call] = []

    def look(call: _Call) -> Schedule:
        calls.append(call)
        return PLAIN

    trace(look)
    return Search(calls[0].graph, program).within(budget)
