"""The one place that reaches past JAX's public API, each name with its reason.

Nothing else in the package imports ``jax._src``. When JAX moves one of these, the fix is here.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jax import dtypes
from jax._src import core as _core
from jax._src import source_info_util as _source
from jax._src.interpreters import ad as _ad
from jax._src.interpreters import partial_eval as _partial_eval
from jax._src.literals import TypedNdArray as _TypedNdArray
from jax.errors import InconclusiveDimensionOperation
from jax.extend.core import (
    ClosedJaxpr,  # pyright: ignore[reportPrivateImportUsage]  # in 0.12
    Jaxpr,
    JaxprEqn,
    Primitive,
    Var,
)
from jax.ref import AbstractRef
from jax.sharding import PartitionSpec

DROPS_BARRIERS = jax.__version_info__ < (0, 11)  # XLA does, compiling for a CPU

jvp, vjp = jax.jvp, jax.vjp  # JAX's own, whatever a person puts in their place

_HERE = os.path.dirname(__file__) + os.sep
_source.register_exclusion(_HERE)  # no frames of the person
for _module in ("memory/footprint", "memory/budgets", "memory/orders", "train/step_program"):
    _source.register_inclusion(f"{_HERE}{_module}.py")  # who calls them stands outside the program

_INSTALLED = {"site-packages", "dist-packages"}

Trace, Tracer = _core.Trace, _core.Tracer
under = _core.set_current_trace  # a context: operations inside belong to the trace
escaped = _core.escaped_tracer_error  # the error of a tracer whose trace has ended
concrete = _core.to_concrete_value  # the value behind a tracer, None if there is none


def asks_if_neutral() -> bool:
    """Whether a value is looked at to see if it is the neutral element of a reduction."""
    frame = inspect.currentframe()
    for _ in range(5):
        frame = None if frame is None else frame.f_back
        if frame is not None and frame.f_code.co_name.startswith("_get_monoid"):
            return True
    return False


def current_trace() -> Any:
    """The trace that operations now belong to."""
    return _core.trace_ctx.trace


def perturbed() -> Any:
    """What stands for a value with a tangent where JAX asks for one."""
    made = object.__new__(_ad.JVPTracer)
    made.tangent = None
    return made


def is_staged_now() -> bool:
    """Whether operations end up in a graph that is being traced, as under ``jit``."""
    trace = current_trace()
    while trace is not None and not isinstance(trace, _partial_eval.DynamicJaxprTrace):
        trace = getattr(trace, "parent_trace", None)
    return trace is not None


def bind(trace: Any, primitive: Primitive, operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """Run an operation as part of a trace. Its parameters are those that a trace is given."""
    avals = tuple(map(_core.typeof, operands))
    return primitive.bind_with_trace(trace, tuple(operands), avals, dict(params))


def out_types(
    primitive: Primitive, avals: Sequence[Any], params: dict[str, Any]
) -> tuple[list[Any], Any]:
    """The types of an operation's outputs, and its effects."""
    found, effects = primitive.abstract_eval(*avals, **params)
    return (list(found) if primitive.multiple_results else [found]), effects


def equation(
    primitive: Primitive,
    params: dict[str, Any],
    operands: Sequence[Any],
    out_avals: Sequence[Any],
    effects: Any = frozenset(),
    prefix: int = 0,
) -> JaxprEqn:
    """A new equation of the line that runs now; ``prefix`` name scopes are left out."""
    source = _source.current()
    scopes = source.name_stack
    source = source.replace(name_stack=scopes[prefix:]) if prefix else source
    outs = [Var(aval) for aval in out_avals]
    return _core.new_jaxpr_eqn(list(operands), outs, primitive, params, effects, source)


def is_inlined(params: dict[str, Any]) -> bool:
    """Whether a call of ``jit`` stands for its equations, as those of JAX's small functions do."""
    inline = params["inline"]  # True or False in JAX 0.10, an enumeration in 0.12
    return getattr(inline, "value", inline) in (True, "jax_early", "jax_late")


def scope_depth() -> int:
    """How many name scopes are open."""
    return len(_source.current_name_stack())


def graph_of(
    eqns: Sequence[JaxprEqn],
    invars: Sequence[Any],
    outvars: Sequence[Any],
    constants: Mapping[Any, Any] | None = None,
) -> Jaxpr:
    """A jaxpr of equations at hand; ``constants`` maps its further variables to their values."""
    names = ("",) * len(invars), ("",) * len(outvars)
    fixed = constants or {}
    return jaxpr_with_constants(
        list(fixed.values()), constvars=list(fixed), invars=list(invars),
        outvars=list(outvars), eqns=list(eqns),
        effects=frozenset(), debug_info=_core.DebugInfo("functional_bp", "recorded", *names),
    )  # fmt: skip


def find_primitive(path: str) -> Primitive | None:
    """The primitive at ``path`` ("lax.lax.tile_p", below ``jax._src``), None if this JAX lacks it.

    For primitives without a public name. If JAX renames one, the census test names it.
    """
    module_name, name = path.rsplit(".", 1)
    try:
        module = importlib.import_module(f"jax._src.{module_name}")
    except ImportError:
        return None
    return getattr(module, name, None)


def find_helper(path: str) -> Callable[..., Any]:
    """The function at ``path`` below ``jax._src``; an ImportError names it if it has moved."""
    module_name, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(f"jax._src.{module_name}"), name)


def emitting(eqn: JaxprEqn) -> AbstractContextManager[Any]:
    """Operations inside carry the equation's source line and name scope, as JAX's own sweeps do.

    Both are rooted at the graph that the equation stands in; if that is called, the call's follow.
    """
    around, own = _source._source_info_context.context, eqn.source_info
    frames = own.traceback
    if around.traceback is not None:
        frames = around.traceback if frames is None else frames + around.traceback
    return _source.user_context(frames, name_stack=around.name_stack + own.name_stack)


def transposing() -> AbstractContextManager[Any]:
    """Operations inside are marked ``transpose(…)`` in their name scope, as JAX's reverse sweep is.

    Profilers, and ``bp.footprint``, tell the two sweeps of a program apart by it.
    """
    return _source.transform_name_stack("transpose")


def source_line(eqn: JaxprEqn, call: tuple[str, int] | None = None) -> tuple[str, int] | None:
    """The person's file and line that made the equation, None if none is known.

    Of what an installed library does inside a call, whose frames end there, it is that of the call.
    """
    frames = _source.user_frames(eqn.source_info.traceback)
    found = innermost((frame.file_name, frame.start_line) for frame in frames)
    if found is None or (call is not None and not _is_persons(found) and _is_persons(call)):
        return call
    return found


def innermost(places: Iterable[tuple[str, int]]) -> tuple[str, int] | None:
    """The person's line among those of a traceback, from the inside out; None if there is none.

    It is the first outside installed libraries, or the first of all. A frame of this package is
    where a program was begun: what follows only asked for it.
    """
    own = list(itertools.takewhile(lambda place: not place[0].startswith(_HERE), places))
    return next(filter(_is_persons, own), own[0] if own else None)


def _is_persons(place: tuple[str, int]) -> bool:
    return _INSTALLED.isdisjoint(place[0].split(os.sep))


def is_of_another_library(file: str) -> bool:
    """Whether a file is an installed library's, and not JAX's."""
    return not _is_persons((file, 0)) and not file.startswith(os.path.dirname(jax.__file__))


def place_of(eqn: JaxprEqn) -> str:
    """The person's "file:line" that made the equation, "" if none is known."""
    return ":".join(map(str, source_line(eqn) or ()))


def custom_backward(eqn: JaxprEqn) -> Any:
    """The backward function that was given to ``defvjp``; None of any other equation."""
    return getattr(eqn.params.get("bwd"), "f", None)


def custom_tangent(wrapped: Any, known: Collection[Any]) -> Any:
    """That one of the ``known`` functions which was given to ``defjvp``; None if another was.

    JAX wraps it once per trace that the operation has gone through; the wrappers close over it.
    """
    inside = [wrapped]
    for _ in range(100):  # three wrappers a trace
        if not inside:
            break
        function = inside.pop()
        if any(function is one for one in known):
            return function
        inside += [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
        inside += [getattr(function, "f", None)] if hasattr(function, "f") else []
    return None


def name_scope(eqn: JaxprEqn) -> str:
    """The ``jax.named_scope`` path that the equation stands in, "" at the top."""
    return str(eqn.source_info.name_stack)


def open_jaxpr(jaxpr: Any) -> tuple[Jaxpr, list[Any]]:
    """A jaxpr and its constants, from a ``ClosedJaxpr`` (JAX 0.10) or a ``Jaxpr`` (0.12)."""
    return getattr(jaxpr, "jaxpr", jaxpr), list(getattr(jaxpr, "consts", ()))


def jaxpr_with_constants(consts: Sequence[Any], *parts: Any, **named: Any) -> Jaxpr:
    """A jaxpr whose ``constvars`` stay apart from its ``invars``.

    JAX 0.12 makes further inputs of them unless their values come along; 0.10 takes no values.
    """
    if "consts" in inspect.signature(Jaxpr).parameters:
        named["consts"] = list(consts)
    return Jaxpr(*parts, **named)


def number_as_array(number: Any, aval: Any) -> Any:
    """A Python number as an array on the host, of a type that may be weak as a literal's is."""
    return _TypedNdArray(np.asarray(number, aval.dtype), aval)


def surely(comparison: Callable[[], bool]) -> bool:
    """Whether a comparison of sizes holds whatever the symbolic dimensions in them are."""
    try:
        return bool(comparison())
    except InconclusiveDimensionOperation:
        return False


def index_dtype(size: Any) -> np.dtype:
    """The integer dtype of positions below ``size``; JAX's default one if that is symbolic."""
    largest = np.iinfo(np.int32).max
    if surely(lambda: size <= largest):
        return np.dtype(np.int32)
    return np.dtype(dtypes.canonicalize_dtype(np.int64))


def as_checkpoint(eqn: JaxprEqn) -> JaxprEqn:
    """A checkpoint, or a name for its policy, in the form that JAX gives to neither by default.

    With the flag ``jax_remat3``, both are instances of one primitive for all operations that
    carry rules of their own; here they become ``remat`` and ``name``. Other equations pass.
    """
    operation = eqn.params.get("_prim")
    path = _CHECKPOINTS.get(type(operation).__name__)
    primitive = None if path is None else find_primitive(path)
    if operation is None or primitive is None:
        return eqn
    return eqn.replace(primitive=primitive, params=operation.params)


_CHECKPOINTS = {
    "RematTraced": "ad_checkpoint.remat_p",
    "CheckpointName": "ad_checkpoint.name_p",
    "CheckpointNameFwd": "ad_checkpoint.name_p",
}


def scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """How many operands of ``scan`` are constants and how many are carried."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # JAX 0.12
    return len(consts), len(carry)


def varying_axes(aval: Any) -> frozenset[str]:
    """The manual mesh axes that a value inside ``shard_map`` varies over."""
    kind = getattr(aval, "manual_axis_type", None)
    if kind is not None:
        return frozenset(kind.varying)
    return frozenset(getattr(aval, "vma", ()))


def cotangent_spec(spec: Any) -> Any:
    """The partition spec of a cotangent.

    "Reduced" (one value, whose cotangents are not yet summed) and "unreduced" (summands, whose
    cotangent is one value) swap places.
    """
    if not (spec.unreduced or spec.reduced):
        return spec
    return spec.to_ct_spec()  # public name, undocumented; 0.12 adds ``unreduced_kind``


def side_by_side(aval: Any, axis_names: Sequence[str]) -> Any:
    """The spec that lays the blocks of a manual value along its first axis, one per device."""
    kind = getattr(aval, "manual_axis_type", None)
    varying = varying_axes(aval)
    names = tuple(name for name in axis_names if name in varying)
    first = () if not names else (names[0] if len(names) == 1 else names,)
    parts = {name: getattr(kind, name, frozenset()) for name in ("unreduced", "reduced")}
    summed_by = getattr(kind, "unreduced_kind", None)  # JAX 0.12
    if summed_by is not None:
        parts["unreduced_kind"] = summed_by
    return PartitionSpec(*first, **parts)


def is_reference(aval: Any) -> bool:
    """Whether a value of this type is a mutable reference."""
    return isinstance(aval, AbstractRef)


def makes_references(graph: Any) -> bool:
    """Whether an equation or a jaxpr makes mutable references, itself or inside."""
    return has_reference_effect(graph.effects)


def has_reference_effect(effects: Any) -> bool:
    """Whether one of the effects is that mutable references are made inside."""
    return _core.internal_mutable_array_effect in effects


@lru_cache(maxsize=256)
def discharged(jaxpr: Any) -> Any:
    """The jaxpr with each reference operand as a value, its last value a further output."""
    closed = jaxpr if hasattr(jaxpr, "consts") else ClosedJaxpr(jaxpr, ())  # JAX 0.12, 0.10
    return find_helper("state.discharge.discharge_state")(closed)


def discharge(eqn: JaxprEqn, held: Sequence[bool], values: Sequence[Any]) -> tuple[Any, Any]:
    """Run an equation on the values of its references, those that ``held`` marks.

    Returns the references' new values (None where unchanged), and the outputs. JAX has such a
    rule for each operation that may hold a reference; its signature differs between versions.
    """
    home = importlib.import_module("jax._src.state.discharge")
    rule = home._discharge_rules.get(eqn.primitive)
    in_avals, out_avals = [a.aval for a in eqn.invars], [v.aval for v in eqn.outvars]
    if hasattr(home, "DischargeContext"):  # JAX 0.12
        context: tuple[Any, ...] = (home.DischargeContext(in_avals, out_avals, list(held), False),)
    else:
        partial = home._partial_discharge_rules.get(eqn.primitive)
        context = (in_avals, out_avals) if partial is None else (list(held), in_avals, out_avals)
        rule = partial or rule
    if rule is None:
        raise NotImplementedError(f"JAX cannot rewrite {eqn.primitive.name!r} on a reference")
    newest, outs = rule(*context, *values, **eqn.params)
    return newest, outs if eqn.primitive.multiple_results else [outs]


def source_spans(eqn: JaxprEqn) -> list[tuple[str, str, int, int, int, int]]:
    """The user's frames that made an equation, innermost first, with the expression's extent.

    Each is file, function, first line, first column, last line, last column; lines count from 1,
    columns from 0, in bytes, as in ``ast``.
    """
    frames = list(_source.user_frames(eqn.source_info.traceback))
    return [
        (f.file_name, f.function_name, f.start_line, f.start_column, f.end_line, f.end_column)
        for f in frames
    ]


def same_trace(one: Any, other: Any) -> bool:
    """Whether two tracers belong to one graph that is being traced."""
    trace = getattr(one, "_trace", None)
    return trace is not None and trace is getattr(other, "_trace", None)
