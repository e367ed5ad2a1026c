"""Claims that are not rules: a gradient function, numbers on paper; references; declarations."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.check.arrays import Arrays
from functional_bp.check.flattening import Flattening, active_outputs
from functional_bp.check.reading import is_traceable
from functional_bp.check.subject import Subject
from functional_bp.errors import compose, describe
from functional_bp.graph.names import function_name


def gradient_function(
    claimed: Callable[..., Any],
    args: Sequence[Any],
    of: Callable[..., Any],
    argnums: int | Sequence[int] | None,
) -> Subject:
    """The claim that ``claimed(*args)`` is the gradient of the scalar ``of(*args)``.

    Args:
        claimed: returns the gradient, or ``(value, gradient)``, as ``jax.value_and_grad`` does.
        args: arguments of both.
        of: the function that is differentiated; a real scalar.
        argnums: which arguments the gradient is for; read off its structure by default.
    """
    shape = _scalar_of(of, args)
    sample = claimed(*args)
    with_value, positions = _positions(sample, args, argnums, shape)
    flat = Flattening(of, args, judged=positions)

    def found(actives: Arrays, fixed: Arrays) -> Arrays:
        result = claimed(*flat.join(actives, fixed))
        bars = result[1] if with_value else result
        single = isinstance(argnums, int) or len(positions) == 1 and not _is_tuple_of_one(bars)
        full: list[Any] = [None] * len(args)
        for i, bar in zip(positions, (bars,) if single else bars, strict=True):
            full[i] = bar
        return flat.cotangents(full, actives)

    def value(actives: Arrays, fixed: Arrays) -> Arrays:
        return active_outputs(of(*flat.join(actives, fixed)))

    def pull(actives: Arrays, fixed: Arrays, bars: Arrays) -> tuple[Arrays, Arrays]:
        outs = value(actives, fixed)
        if with_value:
            outs = active_outputs(claimed(*flat.join(actives, fixed))[0])
        return outs, tuple(bars[0] * bar for bar in found(actives, fixed))

    subject = flat.subject(
        function_name(claimed),
        value=value,
        pull=pull,
        reference=value,
        residuals=lambda actives, fixed: dict(zip(flat.names, actives)),
        backward=lambda kept, fixed, bars: pull(tuple(kept.values()), fixed, bars)[1],
        source=claimed,
    )
    if not is_traceable(value, subject):
        return replace(subject, numeric=value, reference=None, traceable=False, backward=None,
                       residuals=None)  # fmt: skip
    if is_traceable(found, subject):
        return subject
    return replace(subject, traceable=False, backward=None, residuals=None)


def _scalar_of(of: Callable[..., Any], args: Sequence[Any]) -> Any:
    try:
        shape = jax.eval_shape(of, *args)
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError, TypeError):
        shape = of(*args)
    if np.shape(shape) != () and getattr(shape, "shape", None) != ():
        raise TypeError(
            compose(
                f"of={function_name(of)} has no gradient",
                got=f"an output {jax.tree.map(describe, shape)}",
                expected="a real scalar, as for jax.grad",
                do="check a custom_vjp function or a pair (forward, backward) instead",
            )
        )
    return shape


def _positions(
    sample: Any, args: Sequence[Any], argnums: int | Sequence[int] | None, shape: Any
) -> tuple[bool, tuple[int, ...]]:
    """Whether the result has the value beside the gradient, and for which arguments it is."""
    chosen = (argnums,) if isinstance(argnums, int) else None if argnums is None else tuple(argnums)
    structure = jax.tree.structure
    candidates = [(False, sample)]
    if isinstance(sample, tuple) and len(sample) == 2 and np.shape(sample[0]) == ():
        candidates.append((True, sample[1]))
    for with_value, bars in candidates:
        if chosen is not None:
            wanted = args[chosen[0]] if isinstance(argnums, int) else tuple(args[i] for i in chosen)
            if structure(bars) == structure(wanted):
                return with_value, chosen
        elif structure(bars) == structure(args[0]):
            return with_value, (0,)
        elif isinstance(bars, tuple | list):
            if structure(tuple(bars)) == structure(tuple(args)):
                return with_value, tuple(range(len(args)))
            if structure(tuple(bars)) == structure(tuple(args[: len(bars)])):
                return with_value, tuple(range(len(bars)))
    raise TypeError(
        compose(
            "the gradient function returns something that is no gradient of the arguments",
            got=str(structure(sample)),
            expected=f"{structure(args[0])} for the first argument, or a tuple with one entry "
            "per argument",
            do="say for which arguments it is: argnums=",
        )
    )


def _is_tuple_of_one(bars: Any) -> bool:
    return isinstance(bars, tuple | list) and len(bars) == 1


def on_paper(fun: Callable[..., Any], args: Sequence[Any], claims: Mapping[str, Any]) -> Subject:
    """The claim that the gradient of the scalar ``fun`` at ``args`` has these values.

    Args:
        fun: the function that was differentiated by hand.
        args: the point at which it was.
        claims: the gradient by argument: ``{"W1": array}``; names as in ``bp.trace``, or their
            last part. A function in place of an array is called with ``args``.

    Raises:
        TypeError: the claims are not by name, or ``fun`` is not scalar.
    """
    _scalar_of(fun, args)
    every = Flattening(fun, args)
    if not isinstance(claims, Mapping):
        raise TypeError(
            compose("claims= wants gradients by argument", got=type(claims).__name__,
                    expected=f"a dict with names of {', '.join(every.names)}",
                    do=f"write claims={{{every.names[0]!r}: …}}" if every.names else "")
        )  # fmt: skip
    by_name = {resolve(name, every.names): value for name, value in claims.items()}
    flat = Flattening(fun, args, only=tuple(by_name))
    values = [by_name[name] for name in flat.names]

    def value(actives: Arrays, fixed: Arrays) -> Arrays:
        return active_outputs(fun(*flat.join(actives, fixed)))

    def pull(actives: Arrays, fixed: Arrays, bars: Arrays) -> tuple[Arrays, Arrays]:
        joined = flat.join(actives, fixed)
        found = [
            jnp.asarray(v(*joined) if callable(v) else v, x.dtype) for v, x in zip(values, actives)
        ]
        return value(actives, fixed), tuple(bars[0] * bar for bar in found)

    return flat.subject(
        function_name(fun),
        value=value,
        pull=pull,
        reference=value,
        only_here=not all(map(callable, values)),
        rounding=tuple(roundings_of(values)),
        source=fun,
    )


def roundings_of(claims: Sequence[Any]) -> list[float]:
    """How far each claim on paper may be off for having been rounded when it was written down.

    Where the numbers of all have two to six decimals, they count as rounded to those, by half a
    unit of the last: beside 0.39, −0.2 is −0.20. Arrays in float32 with more may carry the rounding
    error of a computation in float32.
    """
    arrays = [None if callable(claim) else np.asarray(claim) for claim in claims]
    decimals = [None if array is None else _decimals(array) for array in arrays]
    most = max((d for d in decimals if d is not None), default=0)
    found: list[float] = []
    for array, written in zip(arrays, decimals):
        rounding = 0.5 * 10.0**-most if written is not None and most >= 2 else 0.0
        if array is not None and _is_single(array):
            size = float(np.max(np.abs(array.astype(np.complex128)), initial=0.0))
            rounding = max(rounding, 1e-5 * size)
        found.append(rounding)
    return found


def _decimals(array: np.ndarray) -> int | None:
    """The decimals that all entries are written with; None where they have all their digits."""
    wide = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    for decimals in range(5 if _is_single(array) else 7):
        if np.array_equal(np.round(wide, decimals).astype(array.dtype), array):
            return decimals
    return None


def _is_single(array: np.ndarray) -> bool:
    return array.dtype.kind in "fc" and np.finfo(array.dtype).bits < 64


def resolve(name: str, names: Sequence[str]) -> str:
    """The name among ``names`` that a person means: the whole of it, or its last part.

    Raises:
        ValueError: there is none, or more than one.
    """
    if name in names:
        return name
    ends = (f"['{name}']", f".{name}", f"[{name}]")
    matching = [full for full in names if full.endswith(ends)]
    if len(matching) == 1:
        return matching[0]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    raise ValueError(
        compose(
            f"no value is called {name!r}" if not matching else f"{name!r} is the end of several",
            got=name,
            expected=" or ".join(matching or near or names) or "a name",
        )
    )


def with_reference(subject: Subject, reference: Any, args: Sequence[Any]) -> Subject:
    """The subject judged against a JAX, NumPy or PyTorch function of the same arguments.

    ``False`` withholds the reference: finite differences of the forward pass alone.
    """
    if reference is False:
        return replace(subject, reference=None, reference_pull=None)
    flat = Flattening(reference, args)
    if len(flat.active) != len(subject.actives):  # some arguments are held fixed
        flat = Flattening(reference, args, only=_same_leaves(flat, subject))
    fun = lambda actives, fixed: active_outputs(reference(*flat.join(actives, fixed)))  # noqa: E731
    problem: Exception | None = None
    try:
        jax.eval_shape(fun, subject.actives, subject.fixed)
        return replace(subject, reference=fun, reference_pull=None)
    except Exception as error:  # not a JAX function, or a wrong one: told apart below
        problem = error
    on_host = lambda actives, fixed: fun(*jax.tree.map(jax.device_get, (actives, fixed)))  # noqa: E731
    try:
        on_host(subject.actives, subject.fixed)
        return replace(subject, reference=None, reference_pull=None, numeric=on_host)
    except Exception as error:
        problem = error if not isinstance(problem, TypeError) else problem
    from functional_bp.check import torch_reference

    made = torch_reference.read(reference, flat, subject)
    if made is not None:
        return made
    raise TypeError(
        compose(
            f"the reference {function_name(reference)} cannot be called with the given arguments",
            got=f"{type(problem).__name__}: {str(problem).splitlines()[0]}",
            expected="a JAX, NumPy or PyTorch function of the same arguments",
            do="for a PyTorch function install it: pip install 'functional-bp[torch]'"
            if find_spec("torch") is None
            else "",
        )
    )


def _same_leaves(flat: Flattening, subject: Subject) -> list[str]:
    return [name for name, leaf in zip(flat.all_names, flat.leaves) if name in subject.names]


def declared(subject: Subject, expect: Any, args: Sequence[Any]) -> Subject:
    """The subject held to a gradient that is false on purpose.

    Args:
        subject: the claim.
        expect: ``"straight-through"`` (x̄ = ȳ); a number c (x̄ = c · the true x̄; −1 is a gradient
            reversal); or a function of the same arguments whose gradient the claim has.
        args: the given arguments.
    """
    if isinstance(expect, int | float) and not isinstance(expect, bool):
        reference = subject.reference or subject.value

        def scaled(actives: Arrays, fixed: Arrays, bars: Arrays) -> tuple[Arrays, Arrays]:
            outs, pullback = jax.vjp(lambda *xs: reference(xs, fixed), *actives)
            return outs, tuple(expect * bar for bar in pullback(tuple(bars)))

        return replace(subject, reference=reference, reference_pull=scaled)
    if expect == "straight-through":
        surrogate = lambda actives, fixed: (actives[0],)  # noqa: E731
    elif callable(expect):
        flat = Flattening(expect, args)
        surrogate = lambda actives, fixed: active_outputs(expect(*flat.join(actives, fixed)))  # noqa: E731
    else:
        raise ValueError(
            compose(
                "expect= declares a gradient that is false on purpose",
                got=repr(expect),
                expected='"straight-through", a number that multiplies the true gradient, or a '
                "function whose gradient it is",
            )
        )
    value = subject.reference or subject.value

    def pull(actives: Arrays, fixed: Arrays, bars: Arrays) -> tuple[Arrays, Arrays]:
        _, pullback = jax.vjp(lambda *xs: surrogate(xs, fixed), *actives)
        return value(actives, fixed), pullback(tuple(bars))

    return replace(subject, reference=value, reference_pull=pull)
