"""A backward pass becomes a program whose single equations can be changed and run again, in NumPy.

Calls are inlined; the bodies of ``scan``, ``cond`` and ``while`` are programs of their own, so that
a change to an equation inside holds in every iteration. Every value has a slot, a number that is
unique in the whole program; an equation is known by the slot of its first result. A graph of small
arrays is evaluated a thousand times, so the commonest primitives are run by NumPy.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import CodeType
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import Jaxpr, Literal, Primitive

from functional_bp._jax import as_checkpoint, open_jaxpr, same_trace, scan_counts, source_spans
from functional_bp.gradcheck.guard import Guard
from functional_bp.graph.nested import called

# Primitives in NumPy.

Operation = Callable[..., Any]


def evaluate(primitive: Primitive, params: Mapping[str, Any], operands: Sequence[Any]) -> list[Any]:
    """One equation gives these outputs; what the table lacks is run by JAX itself."""
    if (operation := TABLE.get(primitive.name)) is not None:
        return [operation(*operands, **params)]
    bound: dict[str, Any] = primitive.get_bind_params(dict(params))  # pyright: ignore
    outs = primitive.bind(*operands, **bound)
    return [as_numpy(out) for out in (outs if primitive.multiple_results else [outs])]


def as_numpy(value: Any) -> Any:
    """The value becomes a NumPy array; what NumPy cannot hold (a random key) stays as it is."""
    try:
        return np.asarray(value)
    except TypeError:
        return value


def in_scope(value: Any) -> bool:
    """Whether a value is an array of real or complex numbers."""
    return isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fc"


# One row per form: the name of the primitive, and the same in NumPy without its parameters.
def _plain(function: Operation) -> Operation:
    return lambda *operands, **_: function(*operands)


def _logistic(x: Any) -> Any:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _select(which: Any, *cases: Any) -> Any:
    if len(cases) == 2:
        return np.where(which, cases[1], cases[0])
    shape = np.broadcast_shapes(*map(np.shape, cases))
    return np.choose(np.broadcast_to(np.asarray(which, np.intp), shape), cases)


def _broadcast(x: Any, *_: Any, shape: Any, broadcast_dimensions: Any, **__: Any) -> Any:
    expanded = [1] * len(shape)
    for axis, size in zip(broadcast_dimensions, np.shape(x)):
        expanded[axis] = size
    return np.broadcast_to(np.reshape(x, expanded), shape)


def _dot(a: Any, b: Any, *, dimension_numbers: Any, **_: Any) -> Any:
    (a_sum, b_sum), (a_batch, b_batch) = dimension_numbers
    if not a_batch and len(a_sum) == 1 and a.ndim and b.ndim and a.ndim <= 2 and b.ndim <= 2:
        a = a.T if a_sum[0] != a.ndim - 1 else a
        return a @ (b if b_sum[0] == 0 else b.T)
    a_free = [i for i in range(a.ndim) if i not in a_sum and i not in a_batch]
    b_free = [i for i in range(b.ndim) if i not in b_sum and i not in b_batch]
    if [a.shape[i] for i in (*a_sum, *a_batch)] != [b.shape[i] for i in (*b_sum, *b_batch)]:
        raise ValueError("shapes do not match")
    batch = [a.shape[i] for i in a_batch]
    free = [a.shape[i] for i in a_free], [b.shape[i] for i in b_free]
    inner = math.prod(a.shape[i] for i in a_sum)
    count = [math.prod(sizes) for sizes in free]
    a = a.transpose((*a_batch, *a_free, *a_sum)).reshape(*batch, count[0], inner)
    b = b.transpose((*b_batch, *b_sum, *b_free)).reshape(*batch, inner, count[1])
    return (a @ b).reshape((*batch, *free[0], *free[1]))


def _reduction(function: Operation) -> Operation:
    def operation(x: Any, *, axes: Any, **_: Any) -> Any:
        return function(x, axis=tuple(axes))

    return operation


def _cumulative(function: Operation) -> Operation:
    def operation(x: Any, *, axis: int, reverse: bool, **_: Any) -> Any:
        if reverse:
            return np.flip(function(np.flip(x, axis), axis=axis), axis)
        return function(x, axis=axis)

    return operation


def _integer_power(x: Any, *, y: int, **_: Any) -> Any:
    return x**y if y >= 0 else 1 / x**-y


def _slice(x: Any, *, start_indices: Any, limit_indices: Any, strides: Any, **_: Any) -> Any:
    steps = strides or (1,) * x.ndim
    return x[tuple(slice(*bounds) for bounds in zip(start_indices, limit_indices, steps))]


def _iota(*_: Any, dtype: Any, shape: Any, dimension: int, **__: Any) -> Any:
    ladder = np.arange(shape[dimension], dtype=dtype)
    return np.broadcast_to(ladder.reshape([-1] + [1] * (len(shape) - dimension - 1)), shape)


def _convert(x: Any, *, new_dtype: Any, **_: Any) -> Any:
    x = np.asarray(x)
    return (x.real if np.dtype(new_dtype).kind != "c" else x).astype(new_dtype)


# fmt: off
TABLE: dict[str, Operation] = {
    **{name: _plain(function) for name, function in {
        "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply,
        "neg": np.negative, "max": np.maximum, "min": np.minimum, "pow": np.power,
        "rem": np.fmod, "atan2": np.arctan2,
        "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log1p": np.log1p,
        "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "cbrt": np.cbrt, "square": np.square,
        "sin": np.sin, "cos": np.cos, "tan": np.tan, "tanh": np.tanh, "sinh": np.sinh,
        "cosh": np.cosh, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan,
        "logistic": _logistic, "abs": np.abs, "sign": np.sign,
        "floor": np.floor, "ceil": np.ceil, "is_finite": np.isfinite,
        "real": np.real, "imag": np.imag, "conj": np.conj,
        "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
        "gt": np.greater, "ge": np.greater_equal,
        "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
        "not": np.invert, "select_n": _select,
        "copy": np.asarray, "stop_gradient": np.asarray,
        "name": np.asarray, "pvary": np.asarray,
        "reduce_precision": np.asarray,
    }.items()},
    **{name: _reduction(function) for name, function in {
        "reduce_sum": np.sum, "reduce_max": np.max, "reduce_min": np.min,
        "reduce_prod": np.prod, "reduce_and": np.all, "reduce_or": np.any,
    }.items()},
    **{name: _cumulative(function) for name, function in {
        "cumsum": np.cumsum, "cumprod": np.cumprod,
        "cummax": np.maximum.accumulate, "cummin": np.minimum.accumulate,
        "cumlogsumexp": np.logaddexp.accumulate,
    }.items()},
    "div": lambda a, b, **_: np.divide(a, b) if np.asarray(a).dtype.kind in "fc"
           else np.trunc(np.divide(a, b)).astype(np.asarray(a).dtype),
    "integer_pow": _integer_power,
    "broadcast_in_dim": _broadcast,
    "reshape": lambda x, *_, new_sizes, **__: np.reshape(x, new_sizes),
    "transpose": lambda x, *, permutation, **_: np.transpose(x, permutation),
    "squeeze": lambda x, *, dimensions, **_: np.squeeze(x, tuple(dimensions)),
    "concatenate": lambda *xs, dimension, **_: np.concatenate(xs, dimension),
    "rev": lambda x, *, dimensions, **_: np.flip(x, tuple(dimensions)),
    "dot_general": _dot,
    "slice": _slice,
    "iota": _iota,
    "convert_element_type": _convert,
}
# fmt: on


Values = dict[int, Any]
# operands, values in scope -> the result, or a list of several
Change = Callable[[Sequence[Any], Values], Any]
Changes = Mapping[int, Change]  # by what the instruction is known by


@dataclass(frozen=True)
class Span:
    """An expression extends over these lines, from 1, and columns, from 0 in bytes, of a file."""

    file: str
    function: str
    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True)
class Instruction:
    """An instruction reads slots, fills slots, and came from expressions in the code."""

    primitive: Primitive
    params: Mapping[str, Any]
    operands: tuple[int, ...]
    results: tuple[int, ...]
    spans: tuple[Span, ...] = ()
    bodies: tuple[Program, ...] = ()
    inside: frozenset[int] = frozenset()  # what the bodies' equations are known by

    @property
    def name(self) -> str:
        """The name of the primitive."""
        return self.primitive.name

    @property
    def key(self) -> int:
        """What the equation is known by."""
        return self.results[0]


@dataclass(frozen=True)
class Program:
    """A program runs equations in order; ``literals`` are the slots of numbers in the code."""

    equations: tuple[Instruction, ...]
    constants: Values
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    literals: frozenset[int] = frozenset()
    names: dict[int, tuple[LocalName, ...]] = field(default_factory=dict)

    def run(
        self,
        inputs: Sequence[Any],
        changes: Changes | None = None,
        outer: Values | None = None,
    ) -> Values:
        """Every slot outside the bodies gets a value; a body's changes may read ``outer`` ones."""
        values = {**(outer or {}), **self.constants}
        values.update(zip(self.inputs, inputs))
        for equation in self.equations:
            values.update(zip(equation.results, _step(equation, values, changes or {})))
        return values

    def rerun(self, values: Values, changes: Changes) -> Values:
        """The changes give these values; only what lies downstream of them is run again."""
        values, dirty = dict(values), set()
        keys = set(changes)
        for equation in self.equations:
            touched = equation.key in keys or not equation.inside.isdisjoint(keys)
            if not touched and dirty.isdisjoint(equation.operands):
                continue
            outs = _step(equation, values, changes)
            dirty.update(equation.results)
            values.update(zip(equation.results, outs))
        return values

    def every(self) -> Iterator[tuple[Instruction, Program]]:
        """Every equation with its program, those in bodies included."""
        for equation in self.equations:
            yield equation, self
            for body in equation.bodies:
                yield from body.every()

    def feeding(self, outputs: Sequence[int]) -> list[Instruction]:
        """The equations that these outputs are computed by, in order."""
        needed, found = set(outputs), []
        for equation in reversed(self.equations):
            if not needed.isdisjoint(equation.results):
                needed.update(equation.operands)
                found.append(equation)
        return found[::-1]

    def outs(self, values: Values) -> list[Any]:
        """The outputs among the values."""
        return [values[slot] for slot in self.outputs]


def _step(equation: Instruction, values: Values, changes: Changes) -> list[Any]:
    operands = [values[slot] for slot in equation.operands]
    change = changes.get(equation.key)
    if change is not None:
        made = change(operands, values)
        return made if isinstance(made, list) else [np.asarray(made)]
    return compute(equation, operands, changes, values)


def compute(
    equation: Instruction,
    operands: Sequence[Any],
    changes: Changes,
    outer: Values | None = None,
) -> list[Any]:
    """An equation gives these results, with changes inside its bodies."""
    if not equation.bodies:
        return evaluate(equation.primitive, equation.params, operands)
    if equation.inside.isdisjoint(changes):
        changes, outer = {}, None
    return _STRUCTURES[equation.name](equation, operands, changes, outer)


def _scan(
    equation: Instruction,
    operands: Sequence[Any],
    changes: Changes,
    outer: Values | None,
) -> list[Any]:
    (body,), params = equation.bodies, equation.params
    consts, carried = scan_counts(dict(params))
    fixed, carry = list(operands[:consts]), list(operands[consts : consts + carried])
    stacked = operands[consts + carried :]
    steps = range(params["length"])
    rows: list[list[Any]] = []
    for t in reversed(steps) if params["reverse"] else steps:
        values = body.run([*fixed, *carry, *(np.asarray(x)[t] for x in stacked)], changes, outer)
        outs = body.outs(values)
        carry = outs[:carried]
        rows.append(outs[carried:])
    if params["reverse"]:
        rows.reverse()
    if not rows:
        raise ValueError("a scan of length 0")
    return [*carry, *(np.stack(column) for column in zip(*rows))]


def _cond(
    equation: Instruction,
    operands: Sequence[Any],
    changes: Changes,
    outer: Values | None,
) -> list[Any]:
    branch = equation.bodies[int(np.clip(operands[0], 0, len(equation.bodies) - 1))]
    return branch.outs(branch.run(operands[1:], changes, outer))


def _while(
    equation: Instruction,
    operands: Sequence[Any],
    changes: Changes,
    outer: Values | None,
) -> list[Any]:
    test, body = equation.bodies
    a, b = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    for_test, for_body, carry = operands[:a], operands[a : a + b], list(operands[a + b :])
    for _ in range(10_000):
        if not test.outs(test.run([*for_test, *carry], changes, outer))[0]:
            return carry
        carry = body.outs(body.run([*for_body, *carry], changes, outer))
    raise ValueError("a loop of more than 10,000 steps")


_STRUCTURES = {"scan": _scan, "cond": _cond, "while": _while}
_BODIES = {"scan": ("jaxpr",), "cond": ("branches",), "while": ("cond_jaxpr", "body_jaxpr")}


@dataclass(frozen=True)
class LocalName:
    """A local variable belongs to the function that was compiled to ``code``.

    ``part`` is the position in a tuple of that name, where the value is one entry of it.
    """

    text: str
    code: CodeType
    part: int | None = None


@dataclass
class TracedCall:
    """A Python function was called while tracing, with these leaves; it left these variables."""

    code: CodeType
    leaves: list[Any]
    parts: list[tuple[str, int]] = field(default_factory=list)  # of each leaf: argument, position
    variables: list[tuple[str, Any]] = field(default_factory=list)

    def names_of(self, value: Any) -> list[LocalName]:
        """The variables that held a value when the function returned."""
        return [LocalName(text, self.code) for text, held in self.variables if held is value]

    def name_of_part(self, leaf: int) -> list[LocalName]:
        """The argument, a tuple, that a leaf is an entry of."""
        text, position = self.parts[leaf]
        return [LocalName(text, self.code, position)] if text else []


def trace(function: Callable[..., Sequence[Any]], *arguments: Any) -> Program:
    """A function of pytrees of arrays becomes a program; slots carry local variables' names."""
    leaves, tree = jax.tree_util.tree_flatten(arguments)
    traced = [i for i, leaf in enumerate(leaves) if isinstance(leaf, np.ndarray | np.generic)]
    calls: list[TracedCall] = []
    named: list[list[LocalName]] = []

    def flat(*arrays: Any) -> tuple[list[Any], list[Any]]:
        full = list(leaves)
        for i, array in zip(traced, arrays):
            full[i] = array
        calls.clear()
        named.clear()
        with _watching(calls):
            outs = list(function(*jax.tree_util.tree_unflatten(tree, full)))
        kept: dict[int, tuple[Any, list[LocalName]]] = {}
        for call in calls:
            for text, value in call.variables:
                if arrays and same_trace(value, arrays[0]):
                    kept.setdefault(id(value), (value, []))[1].append(LocalName(text, call.code))
        named.extend(names for _, names in kept.values())
        return outs, [value for value, _ in kept.values()]

    closed, shape = jax.make_jaxpr(flat, return_shape=True)(*[leaves[i] for i in traced])
    count = len(shape[0])
    jaxpr, constants = open_jaxpr(closed)
    program = _flatten(jaxpr, constants, itertools.count(), ())
    names: dict[int, tuple[LocalName, ...]] = {}
    for slot, group in zip(program.outputs[count:], named):
        names[slot] = (*names.get(slot, ()), *dict.fromkeys(group))
    _name_inside(program, calls, names)
    return replace(program, outputs=program.outputs[:count], names=names)


@contextmanager
def _watching(calls: list[TracedCall]) -> Iterator[None]:
    """Note the calls of Python functions, JAX's own left out, whose variables hold tracers."""
    before = sys.getprofile()
    open_calls: dict[int, TracedCall] = {}

    def note(frame: Any, event: str, _: Any) -> None:
        code = frame.f_code
        if event not in ("call", "return") or _is_foreign(code.co_filename):
            return
        variables = dict(frame.f_locals)
        if event == "call":
            names = code.co_varnames[: code.co_argcount]
            held = [leaf for name in names for leaf in _leaves(variables.get(name))]
            parts = [part for name in names for part in _parts(name, variables.get(name))]
            open_calls[id(frame)] = TracedCall(code, held, parts)
        elif (call := open_calls.pop(id(frame), None)) is not None:
            call.variables = [
                (text, value)
                for text, value in variables.items()
                if isinstance(value, Tracer) and text.isidentifier()
            ]
            calls.append(call)

    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(before)


_JAX = os.path.dirname(os.path.abspath(jax.__file__)) + os.sep
_LIBRARY = os.path.dirname(os.path.abspath(os.__file__)) + os.sep


def _is_foreign(file: str) -> bool:
    """Whether a file is JAX's, Python's own, or none."""
    if file.startswith((_JAX, "<frozen", "<string>")):
        return True
    return file.startswith(_LIBRARY) and "site-packages" not in file


def _leaves(value: Any) -> list[Any]:
    """The leaves of an argument; of an iterator, or an object that is just being made, none."""
    if hasattr(value, "__next__"):
        return []
    with Guard("the leaves of a local variable", may_misfit=True):
        return jax.tree_util.tree_leaves(value)
    return []


def _parts(name: str, value: Any) -> list[tuple[str, int]]:
    """For each leaf of an argument: its name and position, if that is a tuple of leaves."""
    leaves = _leaves(value)
    if isinstance(value, tuple) and len(value) == len(leaves):
        return [(name, position) for position in range(len(leaves))]
    return [("", 0)] * len(leaves)


def _name_inside(program: Program, calls: Sequence[TracedCall], names: dict[int, Any]) -> None:
    """Names of what a loop's body is given: the variables of the call that traced the body."""
    for equation in program.equations:
        for body in equation.bodies:
            homes = {(s.file, s.function) for e in body.equations for s in e.spans[:1]}
            for call in calls:
                offset = len(body.inputs) - len(call.leaves)
                place = (call.code.co_filename, call.code.co_qualname)
                if place not in homes or offset < 0:
                    continue
                if not all(isinstance(leaf, Tracer) for leaf in call.leaves):
                    continue
                for k, (slot, leaf) in enumerate(zip(body.inputs[offset:], call.leaves)):
                    held = call.names_of(leaf) or call.name_of_part(k)
                    found = [*names.get(slot, ()), *held]
                    names[slot] = tuple(dict.fromkeys(found))
            _name_inside(body, calls, names)


def _flatten(
    jaxpr: Jaxpr, constants: Sequence[Any], numbers: Iterator[int], outer: tuple[Span, ...]
) -> Program:
    equations: list[Instruction] = []
    kept: Values = {}
    literals: set[int] = set()

    def inline(jaxpr: Jaxpr, consts: Sequence[Any], inputs: Sequence[int], spans: Any) -> list[int]:
        slots: dict[Any, int] = dict(zip(jaxpr.invars, inputs))
        for variable, value in zip(jaxpr.constvars, consts):
            slots[variable] = next(numbers)
            kept[slots[variable]] = as_numpy(value)

        def read(atom: Any) -> int:
            if not isinstance(atom, Literal):
                return slots[atom]
            slot = next(numbers)
            kept[slot] = np.asarray(atom.val, getattr(atom.aval, "dtype", None))
            literals.add(slot)
            return slot

        for raw in jaxpr.eqns:
            eqn = as_checkpoint(raw)
            own = tuple(Span(*frame) for frame in source_spans(eqn)) or spans
            operands = tuple(read(atom) for atom in eqn.invars)
            inner = called(eqn)
            if inner is not None:
                results = inline(*open_jaxpr(inner), operands, own)
                slots.update(zip(eqn.outvars, results))
                continue
            results = tuple(next(numbers) for _ in eqn.outvars)
            slots.update(zip(eqn.outvars, results))
            bodies = _bodies(eqn, numbers, own)
            inside = frozenset(
                key for body in bodies for e in body.equations for key in (e.key, *e.inside)
            )
            if results:
                equations.append(
                    Instruction(eqn.primitive, eqn.params, operands, results, own, bodies, inside)
                )
        return [read(atom) for atom in jaxpr.outvars]

    inputs = tuple(next(numbers) for _ in jaxpr.invars)
    outputs = tuple(inline(jaxpr, constants, inputs, outer))
    return Program(tuple(equations), kept, inputs, outputs, frozenset(literals))


def _bodies(eqn: Any, numbers: Iterator[int], spans: tuple[Span, ...]) -> tuple[Program, ...]:
    graphs: list[Any] = []
    for key in _BODIES.get(eqn.primitive.name, ()):
        held = eqn.params[key]
        graphs.extend(held if isinstance(held, tuple | list) else [held])
    return tuple(_flatten(*open_jaxpr(graph), numbers, spans) for graph in graphs)
