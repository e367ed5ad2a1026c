"""A finding gets its line here where no edit has named one.

The graph of the person's backward pass tells what feeds a cotangent, what narrows a dtype, and
where the first infinity arises. What leaves no trace in a graph (random numbers, remembered values,
questions about tracers) is looked for in the text. A formula for what a cotangent lacks becomes a
repair of the line that makes it: added to what is returned, it makes the gradient right.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np

from functional_bp._jax import open_jaxpr, source_spans
from functional_bp.definitions import definition, file_of, unwrapped
from functional_bp.gradcheck.diagnosis.expressions import total
from functional_bp.gradcheck.diagnosis.repair.locations import thresholds_of
from functional_bp.gradcheck.diagnosis.repair.program import Instruction, Program, Span, trace
from functional_bp.gradcheck.diagnosis.repair.rewrites import marked, with_kept_lines
from functional_bp.gradcheck.diagnosis.repair.source import expression, read
from functional_bp.gradcheck.findings import Finding, Kind, Place, Repair
from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.subject import Arrays, Disagreement, Subject

CHOICES = ("select_n", "lt", "le", "gt", "ge", "max", "min", "clamp", "eq", "ne", "sign", "abs")
BATCHED = ("pure_callback", "io_callback", "custom_vmap_call", "ffi_call")
# What a line says that a finding may be about.
WORDS: dict[str, tuple[str, ...]] = {
    Kind.NOT_DETERMINISTIC: ("random", "default_rng", "rng", "time", "time_ns", "perf_counter"),
    Kind.JIT: ("Tracer", "item", "float", "bool", "int", "isinstance"),
    Kind.VMAP: ("pure_callback", "custom_vmap", "shape", "size", "ndim", "len", "reshape"),
    Kind.SECOND_ORDER: ("stop_gradient", "pure_callback"),
    Kind.SCAN: ("Tracer", "isinstance"),
    Kind.SHARDING: (
        "addressable_shards", "addressable_data", "device_set", "sharding", "devices",
        "device_count", "local_device_count", "psum", "pmean", "Tracer",
    ),
}  # fmt: skip
CONTAINERS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp)


def line_of_cotangent(subject: Subject, name: str, right: Sequence[str] = ()) -> Place | None:
    """An argument's cotangent is made on the last line that feeds it and none that is ``right``."""
    program = _program(subject)
    if program is None:  # in NumPy, say
        return _assigned(subject, name)
    judged = program.outputs[subject.names.index(name)]
    others = [program.outputs[subject.names.index(n)] for n in right if n != name]
    home = file_of(subject.source)
    shared = program.feeding(others)
    for equation in reversed(program.feeding([judged])):
        place = None if equation in shared else _place(equation, home)
        if place is not None:
            return place
    returned = _returns(subject)
    return returned[-1] if returned else None


def cotangent_as_written(subject: Subject, name: str) -> tuple[Place, str] | None:
    """An argument's cotangent is written as this expression, on this line; None if unknown."""
    program, home = _program(subject), file_of(subject.source)
    if program is None:
        return None
    judged = program.outputs[subject.names.index(name)]
    maker = next((e for e in program.equations if judged in e.results), None)
    made = None if maker is None else expression(maker.spans, home)
    if made is not None and made.span.file == home and made.text:
        return made.place, made.text
    for place, node in _statements(subject):
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
            parts = [part for part in node.value.elts if ast.unparse(part) != "None"]
            if len(parts) == len(subject.names):
                return place, ast.unparse(parts[subject.names.index(name)])
    return None


def lines_of(subject: Subject, what: str, name: str | None = None) -> tuple[Place, ...]:
    """These lines may be what a finding of the kind ``what`` is about, the likeliest first.

    Args:
        subject: the claim.
        what: a kind of finding.
        name: the argument whose cotangent is wrong, where it is only one.
    """
    found: list[Place | None] = []
    if what in (Kind.STRUCTURE, Kind.ERROR, Kind.WRONG_OPERAND):
        found += _returns(subject)
    elif what == Kind.HIDDEN_STATE:
        found += _remembering(subject)
    elif what in (Kind.DTYPE, Kind.PRECISION):
        found += _equations_of(subject, name, _narrows, what == Kind.PRECISION)
    elif what in (Kind.REGION, Kind.REPEATS):
        found += _equations_of(subject, name, lambda e, _: e.name in CHOICES)
    elif what == Kind.VMAP:
        found += _equations_of(subject, name, lambda e, _: e.name in BATCHED)
    found += _mentioning(subject, WORDS.get(what, ()))
    if what in (Kind.DTYPE, Kind.REGION):
        found += [line_of_cotangent(subject, name)] if name else []
    return tuple(dict.fromkeys(place for place in found if place is not None))


def line_of_shards(subject: Subject, name: str) -> Place | None:
    """This line in the body of a ``shard_map`` makes an argument's cotangent."""
    program, home = _program(subject), file_of(subject.source)
    judged = None if program is None else program.outputs[subject.names.index(name)]
    for equation in program.equations if program is not None else ():
        if equation.name == "shard_map" and judged in equation.results:
            body, _ = open_jaxpr(equation.params["jaxpr"])
            made = body.outvars[equation.results.index(judged)]
            makers = [e for e in body.eqns if any(out is made for out in e.outvars)]
            spans = [Span(*frame) for e in makers for frame in source_spans(e)]
            found = expression(spans, home) if spans else None
            if found is not None:
                return found.place
    places = _mentioning(subject, ("psum", "pmean", "shard_map"))
    return places[0] if places else None


def line_of_overflow(
    subject: Subject, actives: Arrays, fixed: Arrays, bars: Arrays
) -> Place | None:
    """This is the first line whose result is not finite though what it is computed from is."""
    program = _program(subject, actives, fixed, bars)
    if program is None:
        return None
    leaves = jax.tree.leaves((tuple(actives), tuple(fixed), tuple(bars)))
    with np.errstate(all="ignore"):
        values = program.run([np.asarray(x) for x in leaves if _is_plain(x)])
    for equation in program.equations:
        operands = [values[slot] for slot in equation.operands]
        if all(map(_finite, operands)) and not all(_finite(values[s]) for s in equation.results):
            place = _place(equation, file_of(subject.source))
            if place is not None:
                return place
    return None


def thresholds_in_code(subject: Subject) -> tuple[float, ...]:
    """The backward pass, or what it keeps, is compared with these numbers."""
    program = _program(subject)
    return () if program is None else tuple(thresholds_of(program))


def _program(
    subject: Subject,
    actives: Arrays | None = None,
    fixed: Arrays | None = None,
    bars: Arrays | None = None,
) -> Program | None:
    """The forward pass's residuals and the backward pass as one program; None if untraceable."""
    kept, backward = subject.residuals, subject.backward
    host = lambda xs: tuple(np.asarray(x) if _is_plain(x) else x for x in xs)
    at = host(subject.actives if actives is None else actives)
    others = host(subject.fixed if fixed is None else fixed)
    with Guard("a trace of the claim"):  # one that cannot be traced has no graph to look in
        if bars is None:
            outs = jax.eval_shape(subject.value, at, others)
            bars = tuple(np.ones(o.shape, o.dtype) for o in outs)
        if kept is None or backward is None:
            return trace(lambda a, f, b: subject.pull(a, f, b)[1], at, others, host(bars))
        program = trace(lambda a, f, b: backward(marked(kept(a, f)), f, b), at, others, host(bars))
        return with_kept_lines(program, file_of(subject.source))
    return None


def _place(equation: Instruction, home: str | None) -> Place | None:
    found = expression(equation.spans, home)
    return None if found is None else found.place


def _equations_of(
    subject: Subject,
    name: str | None,
    is_meant: Callable[[Instruction, Any], bool],
    wide: bool = False,
) -> Iterator[Place | None]:
    """The lines of certain equations that feed a cotangent, the last first."""
    with jax.enable_x64(True) if wide else nullcontext():
        actives = tuple(_widened(x) for x in subject.actives) if wide else None
        program = _program(subject, actives)
        if program is None:
            return
        leaves = jax.tree.leaves((subject.actives if actives is None else actives, subject.fixed))
        outs = jax.eval_shape(subject.value, actives or subject.actives, subject.fixed)
        bars = [np.ones(o.shape, o.dtype) for o in outs]
        with np.errstate(all="ignore"):
            values = program.run([np.asarray(x) for x in [*leaves, *bars] if _is_plain(x)])
    outputs = program.outputs
    if name is not None:
        outputs = (outputs[subject.names.index(name)],)
    for equation in reversed(program.feeding(outputs)):
        for inner in (e for body in equation.bodies for e in reversed(body.equations)):
            if is_meant(inner, {}):
                yield _place(inner, file_of(subject.source))
        if is_meant(equation, values):
            yield _place(equation, file_of(subject.source))


def _narrows(equation: Instruction, values: Any) -> bool:
    """Whether an equation rounds floating-point numbers to a coarser format."""
    to = equation.params.get("new_dtype")
    if equation.name != "convert_element_type" or to is None:
        return False
    value = values.get(equation.operands[0])
    dtype = getattr(value, "dtype", None)
    inexact = jax.numpy.issubdtype(to, np.inexact)
    return inexact and dtype is not None and np.dtype(to).itemsize < dtype.itemsize


def _widened(x: Any) -> Any:
    if not _is_plain(x) or not jax.numpy.issubdtype(x.dtype, np.inexact):
        return x
    array = np.asarray(x)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _is_plain(x: Any) -> bool:
    return not jax.numpy.issubdtype(x.dtype, jax.dtypes.extended)


def _finite(x: Any) -> bool:
    is_number = isinstance(x, np.ndarray | np.generic) and x.dtype.kind in "fc"
    return not is_number or bool(np.all(np.isfinite(x)))


def _statements(subject: Subject) -> Iterator[tuple[Place, ast.AST]]:
    """Each simple statement of the person's function, and each test of a compound one."""
    found = definition(unwrapped(subject.source))
    if found is None:
        return
    lines = read(found.file).lines
    for node in ast.walk(found.node):
        is_simple = isinstance(node, ast.stmt) and not hasattr(node, "body")
        part = node.test if isinstance(node, ast.If | ast.While) else node if is_simple else None
        if part is not None:
            line: int = getattr(part, "lineno", found.node.lineno)
            yield Place(found.file, line, lines[line - 1].strip()), part


def _mentioning(subject: Subject, words: Sequence[str]) -> list[Place]:
    """The statements that name one of the words; the first word counts most."""
    found: list[tuple[int, Place]] = []
    for place, statement in _statements(subject) if words else ():
        names = {getattr(n, "id", getattr(n, "attr", "")) for n in ast.walk(statement)}
        ranks = [i for i, word in enumerate(words) if word in names]
        if ranks:
            found.append((ranks[0], place))
    return [place for _, place in sorted(found, key=lambda one: one[0])]


def _remembering(subject: Subject) -> list[Place]:
    """The statements that use what outlives a call: a mutable default, a global name."""
    found = definition(unwrapped(subject.source))
    if found is None:
        return []
    arguments = found.node.args
    defaults = [*arguments.defaults, *(d for d in arguments.kw_defaults if d is not None)]
    parameters = [*arguments.posonlyargs, *arguments.args]
    parameters = parameters[len(parameters) - len(arguments.defaults) :] + arguments.kwonlyargs
    names = {p.arg for p, d in zip(parameters, defaults) if isinstance(d, CONTAINERS)}
    for node in ast.walk(found.node):
        if isinstance(node, ast.Global | ast.Nonlocal):
            names.update(node.names)
    return _mentioning(subject, sorted(names))


def _assigned(subject: Subject, name: str) -> Place | None:
    """Where the variable is assigned that is returned for an argument, as far as code says it."""
    statements = sorted(_statements(subject), key=lambda one: one[0].line)
    for place, node in reversed(statements):
        if not isinstance(node, ast.Return) or node.value is None:
            continue
        parts = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
        if len(parts) != len(subject.names):
            return place
        part = parts[subject.names.index(name)]
        for before, statement in reversed(statements):
            if before.line < place.line and isinstance(statement, ast.Assign | ast.AugAssign):
                stored = {ast.unparse(n) for n in ast.walk(statement) if _is_stored(n)}
                if ast.unparse(part) in stored:
                    return before
        return place
    return None


def _is_stored(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def _returns(subject: Subject) -> list[Place]:
    return [place for place, node in _statements(subject) if isinstance(node, ast.Return)]


# A formula for what a cotangent lacks, as a correction.

VERIFIED = 2  # fresh samples that a formula has to hold on


def correction(disagreement: Disagreement, seen: Finding) -> Repair | None:
    """A formula for true − claimed becomes a repair; None where it cannot be written there."""
    if not seen.added or not seen.unexplained < 1 or seen.fresh_samples < VERIFIED:
        return None
    subject = disagreement.subject
    written = cotangent_as_written(subject, subject.names[disagreement.argument])
    if written is None:
        return None
    place, before = written
    terms = [f"{'-' if minus else '+'} ({term.python()})" for minus, term in seen.added]
    after = _in_scope_of(subject.source, f"({before}) {' '.join(terms)}")
    if after is None:
        return None
    return Repair(f"to the cotangent as it stands, add {total(seen.added)}", place, before, after)


def _in_scope_of(function: Any, formula: str) -> str | None:
    """A formula in the names of a backward function; None where it has no name for a part of it.

    The cotangent, ``y_bar`` in a formula, is whatever the last parameter is called.
    """
    code = getattr(unwrapped(function), "__code__", None)
    if code is None:
        return None
    tree = ast.parse(formula, mode="eval")
    scope = {*code.co_varnames, *code.co_cellvars, *code.co_freevars, *dir(builtins),
             *unwrapped(function).__globals__}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in scope:
            if node.id != "y_bar" or not code.co_argcount:
                return None
            node.id = code.co_varnames[code.co_argcount - 1]
    return ast.unparse(tree)
