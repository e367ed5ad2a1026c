"""The inputs that a target is checked on: given, described, or read off its annotations."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from functional_bp.check import annotations
from functional_bp.check.collect import Target, load_file
from functional_bp.errors import SHORT_DTYPES, BackpropError, compose

DTYPES = {short: name for name, short in SHORT_DTYPES.items()}
HIGHEST_INTEGER = 3  # of those drawn without a range: small enough to be an index
ARRAY = re.compile(
    r"(?P<dtype>[a-z]+[0-9]*)(?:\[(?P<shape>[0-9, ]*)\])?"
    r"(?::(?P<low>[-+.e0-9]+?)\.\.(?P<high>[-+.e0-9]+))?"
)
WAYS = (
    "give --shape x=f32[4,3] for every argument, or --inputs FILE.npz with an array for each;\n"
    "            or write example_inputs() into the module, which returns a tuple of arguments;\n"
    '            or mark it with @bp.checked(x, ...); or annotate it: x: Float[Array, "b d"]'
)


class InputsError(BackpropError, ValueError):
    """There are no inputs to check something on, or they do not fit it."""


def inputs_for(
    target: Target,
    *,
    file: str | None = None,
    shapes: Sequence[str] = (),
    seed: int = 0,
    what: str = "check it on",
) -> tuple[Any, ...]:
    """The arguments to check a target on, by the first of these ways that there is.

    Args:
        target: what is checked.
        file: an ``.npz`` file with an array for every argument, or a ``.py`` file with a function
            ``example_inputs``.
        shapes: ``x=f32[4,3]``, for every argument that has no default.
        seed: of the random numbers.
        what: is done with them, for the message.

    Returns:
        From the file, from the shapes, of the target's mark, from ``example_inputs`` of its
        module, or after the annotations of its signature.

    Raises:
        InputsError: there are none, or they do not fit.
    """
    function = signed_function(target)
    if file is not None:
        return _checked(target, function, _from_file(target, function, file))
    if shapes:
        return _checked(target, function, _from_shapes(target, function, shapes, seed))
    if target.arguments:
        (first, *others) = target.arguments
        if not others and callable(first):
            made = first()
            first, others = (made[0], made[1:]) if isinstance(made, tuple) and made else (made, ())
        return _checked(target, function, (first, *others))
    if target.brings_inputs:
        return ()
    example = _from_module(target)
    if example is None:
        example = _from_annotations(target, function, seed)
    if example is None:
        raise InputsError(
            compose(
                f"{target.name}: no inputs to {what}",
                got=f"the signature {target.short_name}{_signature(function) or '(…)'}",
                do=WAYS,
            )
        )
    return _checked(target, function, example)


def signed_function(target: Target) -> Any:
    """The function whose parameters are meant: of a pair, the reference or the forward."""
    if not isinstance(target.subject, tuple):
        return target.subject
    return target.options.get("reference") or target.subject[0]


def positions(target: Target, names: Sequence[str]) -> tuple[int, ...]:
    """The positions of the arguments with these names.

    Raises:
        InputsError: there is no argument of that name.
    """
    parameters = _parameters(target, signed_function(target))
    _no_strangers(target, names, parameters)
    return tuple(list(parameters).index(name) for name in names)


def draw(text: str, rng: np.random.Generator) -> Any:
    """An array after ``f32[4,3]``, ``f32[4,3]:0..1``, ``i32[5]:0..9``; or a Python literal.

    Floats are normally distributed, or uniform in their range; integers are drawn from 0 to 3, or
    from their range with both ends; complex numbers have a range for either part.

    Raises:
        ValueError: it is neither, or asks for a dtype that is switched off.
    """
    match = ARRAY.fullmatch(text.strip())
    if match is None or match["dtype"] not in {*DTYPES, *DTYPES.values(), "key"}:
        return _literal(text)
    shape = tuple(int(size) for size in (match["shape"] or "").split(",") if size.strip())
    limits = (float(match["low"]), float(match["high"])) if match["low"] else None
    if match["dtype"] == "key":
        import jax

        keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), shape or (1,))
        return keys if shape else keys[0]
    return _array(shape, DTYPES.get(match["dtype"], match["dtype"]), limits, rng)


def _array(
    shape: tuple[int, ...], name: str, limits: tuple[float, float] | None, rng: np.random.Generator
) -> Any:
    import jax
    import jax.numpy as jnp

    dtype = jnp.dtype(name)
    if dtype.itemsize // (2 if dtype.kind == "c" else 1) > 4 and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(f"{name} is switched off: set the environment variable JAX_ENABLE_X64=1")
    if dtype.kind == "b":
        return jnp.asarray(rng.integers(0, 2, shape), bool)
    if dtype.kind in "iu":
        low, high = limits or (0, HIGHEST_INTEGER)
        return jnp.asarray(rng.integers(int(low), int(high) + 1, shape), dtype)
    reals = lambda: rng.uniform(*limits, shape) if limits else rng.standard_normal(shape)  # noqa: E731
    values = reals() + 1j * reals() if dtype.kind == "c" else reals()
    return jnp.asarray(np.asarray(values).astype(dtype))


def _literal(text: str) -> Any:
    """``-1``, ``"relu"``, ``(0, 1)``, ``None``."""
    if re.fullmatch(r"[0-9 ]+(,[0-9 ]+)+", text):
        raise ValueError(f"{text}: say f32[{text}] for an array, or ({text}) for a tuple")
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{text}: neither an array nor a Python literal") from error


def _from_file(target: Target, function: Any, file: str) -> tuple[Any, ...]:
    import jax.numpy as jnp

    if file.endswith(".py"):
        example = _from_module(dataclasses.replace(target, module=load_file(Path(file))))
        if example is None:
            raise InputsError(
                compose(f"{file} has no inputs for {target.name}",
                        expected=f"example_inputs(), or example_inputs(name) for "
                        f"{target.short_name!r}", do="let it return a tuple of arguments")
            )  # fmt: skip
        return example
    try:
        with np.load(file) as stored:
            arrays = {name: jnp.asarray(stored[name]) for name in stored.files}
    except (OSError, ValueError) as error:
        raise InputsError(
            compose(f"{file} cannot be read as an .npz file", got=f"{error}",
                    do='write it with numpy.savez("inputs.npz", x=x, scale=scale)')
        ) from error  # fmt: skip
    if arrays and all(name == f"arr_{i}" for i, name in enumerate(arrays)):
        return tuple(arrays.values())  # numpy.savez(file, x, scale): in their order
    nested: dict[str, Any] = {}
    for name, array in arrays.items():  # params/W1 is the entry W1 of the argument params
        *outer, last = name.split("/")
        inside = nested
        for part in outer:
            inside = inside.setdefault(part, {})
        inside[last] = array
    return _in_order(target, function, nested)


def _from_shapes(
    target: Target, function: Any, shapes: Sequence[str], seed: int
) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {}
    for text in shapes:
        name, equals, description = text.partition("=")
        try:
            if not equals:
                raise ValueError("there is no =")
            values[name.strip()] = draw(description, rng)
        except ValueError as error:
            raise InputsError(
                compose(f"--shape {text} cannot be read", got=str(error),
                        expected="--shape x=f32[4,3], also i32[5], bool[3], f32[4,3]:0..1, axis=-1")
            ) from error  # fmt: skip
    return _in_order(target, function, values)


def _from_module(target: Target) -> tuple[Any, ...] | None:
    example = getattr(target.module, "example_inputs", None)
    if not callable(example):
        return None
    made = example(target.short_name) if _parameter_count(example) else example()
    if isinstance(made, Mapping):
        made = made.get(target.short_name)
    if made is None:
        return None
    return tuple(made) if isinstance(made, tuple | list) else (made,)


def _from_annotations(target: Target, function: Any, seed: int) -> tuple[Any, ...] | None:
    described = annotations.annotated(function)
    try:
        parameters = _parameters(target, function)
    except InputsError:
        return None
    rng, sizes = np.random.default_rng(seed), annotations.Sizes()
    values: list[Any] = []
    for name, parameter in parameters.items():
        if name in described:
            dtype, dims = described[name]
            try:
                shape = annotations.shape_of(dims, sizes)
                values.append(draw(f"{dtype}[{','.join(map(str, shape))}]", rng))
            except (ValueError, SyntaxError) as error:
                message = f"{target.name}: the annotation of {name} cannot be read"
                raise InputsError(compose(message, got=str(error), do=WAYS)) from error
        elif parameter.default is not parameter.empty:
            values.append(parameter.default)
        else:
            return None
    return tuple(values) or None


def _in_order(target: Target, function: Any, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Values by name as positional arguments; defaults fill the places between."""
    parameters = _parameters(target, function)
    _no_strangers(target, list(values), parameters)
    missing = [
        name for name, p in parameters.items() if name not in values and p.default is p.empty
    ]
    if missing:
        raise InputsError(
            compose(f"{target.name}: nothing is given for {', '.join(missing)}",
                    got=", ".join(values), expected=", ".join(parameters),
                    do=f"add --shape {missing[0]}=f32[4,3], or its array to the file")
        )  # fmt: skip
    last = max((list(parameters).index(name) for name in values), default=-1)
    return tuple(values.get(name, p.default) for name, p in list(parameters.items())[: last + 1])


def _no_strangers(target: Target, names: Sequence[str], parameters: Mapping[str, Any]) -> None:
    for name in names:
        if name not in parameters:
            near = difflib.get_close_matches(name, list(parameters), n=3)
            raise InputsError(
                compose(f"{target.name} has no argument {name!r}",
                        expected=", ".join(parameters),
                        do=f"near it: {', '.join(near)}" if near else "")
            )  # fmt: skip


def _parameters(target: Target, function: Any) -> dict[str, inspect.Parameter]:
    """The positional parameters by name."""
    signature = _signature(function)
    if signature is None:
        raise InputsError(
            compose(f"{target.name}: the names of its arguments are not known",
                    got=f"{type(function).__name__} without a signature",
                    do="give the arguments in order: numpy.savez(file, x, scale), or @bp.checked")
        )  # fmt: skip
    keyword_only = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    return {n: p for n, p in signature.parameters.items() if p.kind not in keyword_only}


def _checked(target: Target, function: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, if the signature takes so many."""
    signature = _signature(function)
    if signature is not None:
        try:
            signature.bind(*arguments)
        except TypeError as error:
            raise InputsError(
                compose(f"the inputs do not fit {target.name}",
                        got=f"{len(arguments)} arguments: {error}",
                        expected=f"{target.short_name}{signature}")
            ) from error  # fmt: skip
    return arguments


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _parameter_count(function: Callable[..., Any]) -> int:
    signature = _signature(function)
    return 0 if signature is None else len(signature.parameters)
