"""A footprint tells every byte that training and prediction need, before anything runs.

D2L 5.3, exercise 3: "Compute the memory footprint for training and prediction." The programs are
compiled for the shapes of the arguments, and what XLA allocated for them is read
(``memory.allocation``); nothing is run, and no array is made.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from functional_bp.engine.transforms import value_and_grad
from functional_bp.errors import BackpropError, describe
from functional_bp.graph import names
from functional_bp.graph.graph import Graph, format_bytes
from functional_bp.graph.inline import inlined
from functional_bp.graph.trace import trace
from functional_bp.memory.allocation import CompiledProgram, program_of
from functional_bp.memory.attribution import OPTIMIZER_SCOPE, Provenance, Purpose, Usage, usage_of
from functional_bp.memory.footprint_report import FootprintReport, html, markdown, text, timeline
from functional_bp.memory.growth import (
    ArgumentDimension,
    Growth,
    Largest,
    dimensions_of,
    largest_of,
    slope_of,
    unknown,
)
from functional_bp.memory.kept import KeptValue, kept_values
from functional_bp.memory.marked import KEPT

_UNITS = {
    "": 1,
    "k": 1000,
    "m": 1000**2,
    "g": 1000**3,
    "t": 1000**4,
    "ki": 1024,
    "mi": 1024**2,
    "gi": 1024**3,
    "ti": 1024**4,
}


class FootprintError(BackpropError, ValueError, TypeError):
    """The memory of a function cannot be told, or a size in bytes is written wrongly."""


def parse_bytes(size: int | float | str) -> int:
    """Read a size in bytes: a number, or a text as "2 GiB", "500MB", "1.5e9".

    Raises:
        FootprintError: it is neither, or not positive.

    >>> parse_bytes("2 GiB"), parse_bytes("500 kB"), parse_bytes(1024)
    (2147483648, 500000, 1024)
    """
    found = re.fullmatch(r"\s*([\d.]+(?:e\d+)?)\s*([kmgt]i?)?b?\s*", str(size).lower())
    try:
        count = float(found[1]) * _UNITS[found[2] or ""] if found else 0.0
    except ValueError:
        count = 0.0
    if isinstance(size, bool) or count < 1:
        raise FootprintError(
            "this is no size of a memory",
            got=repr(size),
            expected='a number of bytes, or a text such as "16 GiB" or "500 MB"',
        )
    return int(count)


@dataclass(frozen=True, eq=False)
class Footprint:
    """A footprint says what fills the memory of a device in training and in prediction.

    Printed, it is a table; a notebook shows it with a picture of memory over the program's course.

    Attributes:
        name: the function's.
        devices: over how many the arguments' shardings divide them; figures are of one.
        training: one forward and one reverse sweep, and the optimizer's update where one was
            given; None where the function is no loss.
        prediction: the function alone; None for a training step.
    """

    name: str
    devices: int
    training: Usage | None
    prediction: Usage | None
    _subject: FootprintSubject = field(repr=False)

    @property
    def usages(self) -> dict[str, Usage]:
        """Return those of the two that there are, by "training" and "prediction"."""
        both = {"training": self.training, "prediction": self.prediction}
        return {name: usage for name, usage in both.items() if usage is not None}

    @property
    def peak_bytes(self) -> int:
        """Return what is needed at once on a device: for training, where that is there."""
        return next(iter(self.usages.values())).peak_bytes

    def fits(self, memory: int | float | str) -> bool:
        """Say whether ``memory`` bytes ("16 GiB") of a device suffice."""
        return self.peak_bytes <= parse_bytes(memory)

    def growth(self) -> Growth:
        """Tell how the peak grows with each dimension of the arguments, from two compilations each.

        Returns:
            What one more of each costs; where the peak is linear in it, exactly.
        """
        subject = self._subject
        slopes = [
            slope_of(dimension, subject.args, subject.peak_bytes, self.peak_bytes)
            for dimension in subject.dimensions
        ]
        return Growth(self.name, self.peak_bytes, tuple(slopes))

    def largest(self, memory: int | float | str, dimension: str | None = None) -> Largest:
        """Find the largest size of a dimension that fits, and verify it by compiling that.

        Args:
            memory: of a device, in bytes or as "16 GiB".
            dimension: by one of its axes, ``"x.shape[0]"``; by default the first axis of the first
                argument that is not trained: of most losses the batch.

        Raises:
            SizeError: there is no such dimension, or not even size 1 fits.
        """
        known = {str(axis): d for d in self._subject.dimensions for axis in d.axes}
        key = dimension if dimension is not None else next(iter(known), "")
        if key not in known:
            raise unknown(key, list(known))
        subject = self._subject
        return largest_of(
            known[key], subject.args, subject.peak_bytes, self.peak_bytes, parse_bytes(memory)
        )

    @functools.cached_property
    def kept(self) -> tuple[KeptValue, ...]:
        """Tell why values are kept for the reverse sweep: which rule names each; () of no loss.

        These are bytes of the graph on one device, before XLA fuses operations.
        """
        subject = self._subject
        return (
            () if not subject.is_loss else kept_values(subject.fun, subject.args, subject.trained)
        )

    @property
    def _report(self) -> FootprintReport:
        return FootprintReport(self.name, self.devices, self.usages, self.kept)

    def text(self, width: int | None = None, color: bool = False) -> str:
        """Write the tables for a terminal."""
        return text(self._report, width, color)

    def markdown(self) -> str:
        """Write the tables in Markdown."""
        return markdown(self._report)

    def svg(self) -> str:
        """Draw the memory over the course of the program."""
        return timeline(self._report)

    def html(self) -> str:
        """Write a page of its own with the picture and the tables."""
        return html(self._report)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        peaks = ", ".join(
            f"{name} {format_bytes(usage.peak_bytes)}" for name, usage in self.usages.items()
        )
        return f"<Footprint of {self.name}: {peaks}>"

    def _repr_html_(self) -> str:
        return html(self._report, is_page=False)


def footprint(
    fun: Callable[..., Any],
    *args: Any,
    optimizer: Any = None,
    argnums: int = 0,
    has_aux: bool = False,
    **kwargs: Any,
) -> Footprint:
    """Tell what fills a device's memory when ``fun(*args)`` is trained, and when it is run.

    The programs are compiled for the devices on which the arguments lie, by their shardings, or for
    the platform that JAX uses here, and read; nothing runs. Compilers for TPUs tell sums alone.

    Args:
        fun: a loss (a real scalar), whose gradient is taken with ``bp.grad``; or any function, or a
            training step (``train.step``, a function under ``jax.jit``), which is compiled as it
            is, with what it donates.
        *args: its arguments, pytrees of arrays or of ``jax.ShapeDtypeStruct`` in their place.
            Where these have shardings, the figures are those of one device.
        optimizer: an optax optimizer; training then means the step that it takes, parameters and
            state being donated.
        argnums: the argument that is trained.
        has_aux: ``fun`` returns ``(loss, auxiliary)``.
        **kwargs: further arguments, by keyword.

    Returns:
        A footprint, to be printed.

    Raises:
        FootprintError: ``fun`` cannot be compiled for these arguments, or an optimizer was given
            for what is no loss.

    Example:
        >>> import functional_bp as bp
        >>> def loss(w, x):
        ...     return jnp.mean(jnp.tanh(x @ w) ** 2)
        >>> w, x = (jax.ShapeDtypeStruct(s, "float32") for s in ((256, 256), (1024, 256)))
        >>> found = bp.footprint(loss, w, x)
        >>> found.training.by_use["parameters"], found.prediction.by_use["batch"]
        (262144, 1048576)
    """
    subject = FootprintSubject(fun, args, kwargs, optimizer, argnums, has_aux)
    training = subject.usage(subject.training) if subject.is_loss else None
    alone = subject.usage(subject.prediction)
    is_step = not subject.is_loss and subject.takes_a_state
    return Footprint(
        subject.name,
        _devices(subject.args),
        alone if is_step else training,
        None if is_step else alone,
        subject,
    )


Built = tuple[Callable[..., Any], tuple[Any, ...], tuple[int, ...]]  # function, arguments, donated


class FootprintSubject:
    """What is compiled: the function of its arrays, and what trains it."""

    def __init__(
        self,
        fun: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        optimizer: Any,
        argnums: int,
        has_aux: bool,
    ) -> None:
        self.name = names.function_name(fun)
        self._check_call(fun, args, kwargs)
        self.fun, self.args, self.heads = _with_arrays_only(fun, args, kwargs)
        is_jitted = hasattr(self.fun, "lower")
        self.traced = getattr(self.fun, "__wrapped__", self.fun) if is_jitted else self.fun
        self.optimizer, self.has_aux = optimizer, has_aux
        given = names.positional_names(fun, len(args))
        is_there = isinstance(argnums, int) and -len(given) <= argnums < len(given)
        if not is_there or given[argnums] not in self.heads:
            raise FootprintError(
                "argnums is beyond the arguments",
                got=f"argnums={argnums}",
                expected="the position of an argument that is an array or a pytree of them",
            )
        self.trained = self.heads.index(given[argnums])
        self.is_loss = self._returns_loss()
        if optimizer is not None and not self.is_loss:
            raise FootprintError(
                "an optimizer trains a loss",
                where=self.name,
                got="a function that returns no real scalar",
                expected="a real scalar, or (scalar, auxiliary) with has_aux=True",
                do="leave optimizer out, or pass the loss itself",
            )

    def _check_call(self, fun: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if (found := names.misfit(fun, args, kwargs)) is not None:
            signature, why = found
            raise FootprintError(
                f"{self.name} cannot be called with these arguments",
                got=f"{len(args) + len(kwargs)} of them: {why}",
                expected=f"those of {self.name}{signature}, arrays or their shapes",
            )

    def _returns_loss(self) -> bool:
        try:
            out: Any = jax.eval_shape(self.traced, *self.args)
        except BackpropError:
            raise
        except Exception as error:
            raise self._failed(self.args, error) from error
        has_two = self.has_aux and isinstance(out, tuple | list) and len(out) == 2
        loss: Any = out[0] if has_two else out
        dtype = getattr(loss, "dtype", None)
        return dtype is not None and loss.shape == () and jnp.issubdtype(dtype, jnp.floating)

    @property
    def takes_a_state(self) -> bool:
        """Say whether it is a training step: its argument holds parameters beside other things."""
        paths = names.argument_names(self.fun, self.args, {})
        return any(path.startswith(f"{self.heads[self.trained]}.params") for path in paths)

    def training(self, args: tuple[Any, ...]) -> Built:
        """Return the function that trains, its arguments, and the positions of what is donated."""
        sweep = value_and_grad(self.fun, self.trained, has_aux=self.has_aux)
        if self.optimizer is None:
            return sweep, args, ()
        optimizer, trained = self.optimizer, self.trained

        def step(opt_state: Any, *inputs: Any) -> Any:
            import optax

            value, bars = sweep(*inputs)
            with jax.named_scope(OPTIMIZER_SCOPE):
                updates, opt_state = optimizer.update(bars, opt_state, inputs[trained])
                params = optax.apply_updates(inputs[trained], updates)
            return opt_state, params, value  # in the order of what is donated, to lie there

        _sign(step, ["opt_state", *self.heads])
        return step, (jax.eval_shape(optimizer.init, args[trained]), *args), (0, 1 + trained)

    def prediction(self, args: tuple[Any, ...]) -> Built:
        """Return the function itself."""
        return self.fun, args, ()

    def compiled(self, build: Callable[..., Built], args: tuple[Any, ...]) -> CompiledProgram:
        """Compile what ``build`` returns for these arguments, and read its memory."""
        try:
            fun, inputs, donated = build(args)
            jitted: Any = fun if hasattr(fun, "lower") else jax.jit(fun, donate_argnums=donated)
            return program_of(jitted.lower(*inputs).compile())
        except BackpropError:
            raise
        except Exception as error:
            raise self._failed(args, error) from error

    def usage(self, build: Callable[..., Built]) -> Usage:
        """Say what fills the memory of what ``build`` returns."""
        grads = self.is_loss and self.optimizer is None and build == self.training
        root = self.heads[self.trained]
        return usage_of(
            self.compiled(build, self.args),
            lambda name: _use_of_argument(name, root),
            Purpose.GRADIENTS if grads else Purpose.OUTPUTS,
            self.names,
            self.constant_names,
        )

    def peak_bytes(self, args: tuple[Any, ...]) -> int:
        """Return what training needs for other sizes; of what is no loss, the function alone."""
        return self.compiled(self.training if self.is_loss else self.prediction, args).peak_bytes

    @functools.cached_property
    def dimensions(self) -> list[ArgumentDimension]:
        """Find the sizes of the arguments that can be changed."""
        paths = names.argument_names(self.fun, self.args, {})
        root = self.heads[self.trained]
        trained = [_use_of_argument(path, root) is not Purpose.BATCH for path in paths]

        def fits(args: tuple[Any, ...]) -> bool:
            try:
                jax.eval_shape(self.traced, *args)
            except Exception:  # the person's function may raise anything
                return False
            return True

        return dimensions_of(self.args, paths, trained, fits)

    @functools.cached_property
    def graph(self) -> Graph:
        """Return the graph of the function, calls written out."""
        return inlined(trace(self.traced, *self.args))

    @functools.cached_property
    def names(self) -> Callable[[Provenance, str], str]:
        """Find the person's tags (``bp.name``) by operation and source line."""
        tags = {
            (equation.operation, equation.source): variable.tag
            for equation in self.graph
            for variable in equation.outputs
            if variable.tag not in (None, KEPT)
        }

        def find(origin: Provenance, type: str) -> str:
            return "" if origin.is_reverse else tags.get((origin.operation, origin.source)) or ""

        return find

    @functools.cached_property
    def constant_names(self) -> Callable[[str], str]:
        """Find the variables of the closure that hold arrays of a type, whatever XLA made of them.

        It may have transposed or joined axes; dtype and number of entries stay.
        """
        held: dict[tuple[str, int], list[str]] = {}
        for variable in self.graph.constants:
            if variable.size > 1:
                held.setdefault(_dtype_and_size(variable.type), []).append(variable.name)
        return lambda type: " or ".join(held.get(_dtype_and_size(type), ()))

    def _failed(self, args: Sequence[Any], error: Exception) -> FootprintError:
        shapes = ", ".join(str(jax.tree.map(describe, arg)).replace("'", "") for arg in args)
        first = (str(error).splitlines() or [""])[0]
        do = "call it once with arrays of these shapes under jax.jit to see where it fails"
        return FootprintError(
            f"{self.name} cannot be compiled for these arguments",
            got=f"{shapes}\n            {type(error).__name__}: {first}",
            do=do,
        )


def _with_arrays_only(
    fun: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...], list[str]]:
    """Return a function of what is traced, the shapes of that, and the parameters' names.

    Settings and keywords are closed over.
    """
    heads = names.positional_names(fun, len(args))
    shaped = jax.tree.map(abstract, tuple(args))
    is_traced = [all(map(names.leaf_is_array, jax.tree.leaves(arg))) for arg in args]
    if all(is_traced) and not kwargs:
        return fun, shaped, heads

    @functools.wraps(fun)
    def called(*traced: Any) -> Any:
        found = iter(traced)
        return fun(*(next(found) if on else arg for on, arg in zip(is_traced, args)), **kwargs)

    heads = [head for head, on in zip(heads, is_traced) if on]
    _sign(called, heads)
    return called, tuple(arg for arg, on in zip(shaped, is_traced) if on), heads


def abstract(leaf: Any) -> Any:
    """Return an array's shape, dtype and sharding, so that it can be let go."""
    if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer):
        sharding = leaf.sharding if leaf.committed else None
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    if isinstance(leaf, jax.ShapeDtypeStruct) or not names.leaf_is_array(leaf):
        return leaf
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def _sign(function: Callable[..., Any], heads: Sequence[str]) -> None:
    """Give the function parameters of these names, which JAX gives to the program's arguments."""
    named = [head if head.isidentifier() else f"args_{k}" for k, head in enumerate(heads)]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in named])
    vars(function)["__signature__"] = signature


def _dtype_and_size(type: str) -> tuple[str, int]:
    dtype, _, sizes = type.rstrip("]").partition("[")
    return dtype, math.prod(int(size) for size in sizes.split(",") if size)


_STATE = {
    ".params": Purpose.PARAMETERS,
    ".opt_state": Purpose.OPTIMIZER,
    ".model_state": Purpose.STATE,
    ".step": Purpose.STATE,
    ".rng": Purpose.STATE,
    ".loss_scale": Purpose.STATE,
}


def _use_of_argument(name: str, trained: str) -> Purpose:
    """Say what an argument of that name is, ``state.params['W']`` of a training step's too."""
    if not name:
        return Purpose.CONSTANTS
    found = re.match(r"\w*", name)
    root = found[0] if found else name
    if root == "opt_state":
        return Purpose.OPTIMIZER
    for part, use in _STATE.items():
        if name.startswith(f"{trained}{part}"):
            return use
    return Purpose.PARAMETERS if root == trained else Purpose.BATCH


def _devices(args: Sequence[Any]) -> int:
    shardings = (getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(args))
    return max((len(s.device_set) for s in shardings if s is not None), default=1)
