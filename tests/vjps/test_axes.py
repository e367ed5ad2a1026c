"""What a rule says of its axes is true: pieces along them, computed alone, make up the whole.

Every equation of a rule's primitive in its cases is cut along each label that is divisible or
summed. The rest, halo, positional and mixed labels, must not be divisible in all of the cases.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive
from jax.ref import AbstractRef

import functional_bp as bp
from functional_bp import _jax
from functional_bp.engine.axes import Axes, Role, axes_of, elementwise, relate
from functional_bp.engine.rule import Case, Rule, rules
from functional_bp.engine.sweeps import run
from functional_bp.graph.interpret import equations, is_inexact
from functional_bp.graph.nested import called, inner_graphs
from functional_bp.layouts.pieces import piece_params

COMBINED: dict[str, Any] = {
    "sum": jnp.add, "prod": jnp.multiply, "max": jnp.maximum, "min": jnp.minimum,
    "and": jnp.bitwise_and, "or": jnp.bitwise_or, "xor": jnp.bitwise_xor,
}  # fmt: skip
NEUTRAL = {"sum": 0, "prod": 1, "max": -math.inf, "min": math.inf}


class Pieces(NamedTuple):
    """The outputs of an equation as a whole, and made up of pieces."""

    whole: list[Any]
    made: list[Any]


def equations_of(rule: Rule, case: Case, args: Sequence[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """The equations of a rule's primitive in a case, with their operands."""
    found: list[tuple[Any, list[Any]]] = []

    def step(eqn: Any, operands: Sequence[Any]) -> Any:
        if eqn.primitive is rule.primitive:
            found.append((eqn, list(operands)))
        elif (inner := called(eqn)) is not None:
            jaxpr, consts = _jax.open_jaxpr(inner)
            return run(jaxpr, consts, operands, step)
        return bp.engine.sweeps.evaluate(eqn, operands)

    jaxpr, consts = _jax.open_jaxpr(jax.make_jaxpr(case.function)(*args))
    if within_reach(rule, jaxpr):
        run(jaxpr, consts, args, step)
    yield from found


def within_reach(rule: Rule, jaxpr: Any) -> bool:
    """Whether the primitive is in the graph, or in one that it calls, and not on references."""
    for eqn in jaxpr.eqns:
        if eqn.primitive is rule.primitive:
            return not any(isinstance(v.aval, AbstractRef) for v in (*eqn.invars, *eqn.outvars))
        inner = called(eqn)
        if inner is not None and within_reach(rule, _jax.open_jaxpr(inner)[0]):
            return True
    return False


def cuts(sizes: set[int]) -> list[tuple[float, float]]:
    """Where to cut axes of these sizes, as fractions: in as few equal pieces as divide them all."""
    common = math.gcd(*sizes)
    count = next((p for p in range(2, common + 1) if common % p == 0), 0)
    return [(k / count, (k + 1) / count) for k in range(count)]


def cut(x: Any, axis: int, part: tuple[float, float]) -> Any:
    start, stop = (round(x.shape[axis] * end) for end in part)
    return lax.slice_in_dim(x, start, stop, axis=axis)


def in_pieces(eqn: Any, operands: Sequence[Any], axes: Axes, label: Any) -> Pieces | None:
    """An equation as a whole, and along a label in pieces; None where that has but one entry."""
    places = axes.places[label]
    shapes = [v.aval.shape for v in eqn.invars], [v.aval.shape for v in eqn.outvars]
    size = lambda p: shapes[p.is_output][p.array][p.axis]
    parts = cuts({size(p) for p in places})
    if not parts:
        return None
    evaluate = lambda operands, params: bp.engine.sweeps.evaluate(
        eqn.replace(params=params), operands
    )
    axis_of = {(p.is_output, p.array): p.axis for p in reversed(places)}
    ins, outs = (tuple(axis_of.get((side, k)) for k in range(len(shapes[side]))) for side in (0, 1))
    params = piece_params(eqn, ins, outs, Fraction(1, len(parts)))
    is_summed = axes.role(label) is Role.SUMMED
    found = []
    for part in parts:
        given = []
        for k, x in enumerate(operands):
            if (False, k) in axis_of:
                for p in places:
                    x = cut(x, p.axis, part) if (p.is_output, p.array) == (False, k) else x
            elif is_summed and part is not parts[0] and x.shape in shapes[1]:
                x = jnp.full_like(x, NEUTRAL[axes.combine])
            given.append(x)
        found.append(evaluate(given, params))
    made = []
    for k, outs in enumerate(zip(*found)):
        axis = axis_of.get((True, k))
        if is_summed:
            combine, joined = COMBINED[axes.combine], outs[0]
            for out in outs[1:]:
                joined = combine(joined, out)
            made.append(joined)
        elif axis is None:
            made.extend(outs)
        else:
            made.append(lax.concatenate(outs, axis))
    whole = list(evaluate(operands, eqn.params))
    if not is_summed:
        counts = [1 if (True, k) in axis_of else len(parts) for k in range(len(whole))]
        whole = [x for x, count in zip(whole, counts) for _ in range(count)]
    return Pieces(whole, made)


def differ(pieces: Pieces) -> str:
    """Where the pieces do not make up the whole, "" where they do."""
    for k, (got, want) in enumerate(zip(pieces.made, pieces.whole, strict=True)):
        if got.shape != want.shape:
            return f"output {k}: shape {got.shape}, not {want.shape}"
        # some sums of a dozen terms in another order, in the precision of the output
        eps = float(jnp.finfo(want.dtype).eps) if is_inexact(want) else 0.0
        size = np.abs(want[np.isfinite(want)]).max(initial=0) if eps else 0
        if not np.allclose(got, want, rtol=256 * eps, atol=256 * eps * size, equal_nan=eps > 0):
            return f"output {k} differs"
    return ""


class Cut(NamedTuple):
    """One label of one equation of a rule's cases was cut.

    Attributes:
        rule: the rule.
        role: what it says of the label.
        what: the rule, the case and the label, for a message.
        difference: where the pieces do not make up the whole, or why they cannot be computed.
    """

    rule: Rule
    role: Role
    what: str
    difference: str


def cuts_of(some: Sequence[Rule], axes_of: Callable[[Any], Axes | None] = axes_of) -> list[Cut]:
    """All labels of all cases of some rules, cut; in one compiled program."""
    pairs = [(rule, k) for rule in some for k in range(len(rule.cases))]
    told: list[tuple[Rule, Role, str, str | None]] = []

    def everything(draws: Any) -> list[Pieces]:
        made = []
        for (rule, k), args in zip(pairs, draws):
            for eqn, operands in equations_of(rule, rule.cases[k], args):
                is_call = rule.axes is None and inner_graphs(eqn)
                axes = (None if is_call else axes_of(eqn)) or relate((), ())
                for label in filter(worth_cutting, axes.places):
                    what = f"{rule.primitive.name}, case {k}, along {label}"
                    try:
                        pieces = in_pieces(eqn, operands, axes, label)
                    except (TypeError, ValueError) as error:
                        told.append((rule, axes.role(label), what, f"raises: {error}"))
                        continue
                    if pieces is not None:
                        told.append((rule, axes.role(label), what, None))
                        made.append(jax.tree.map(as_numbers, pieces))
        return made

    draws = [rule.cases[k].draw() for rule, k in pairs]
    few = len(pairs) < 8  # of which one is on a mesh of its own
    numbers = iter(jax.device_get((everything if few else jax.jit(everything))(draws)))
    return [
        Cut(rule, role, what, differ(next(numbers)) if raised is None else raised)
        for rule, role, what, raised in told
    ]


def worth_cutting(label: Any) -> bool:
    """A matrix that is cut is none: where LAPACK wants a square one, it may even crash."""
    return not (isinstance(label, str) and label.isupper())


def as_numbers(x: Any) -> Any:
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x


BY_DEFAULT = ("shapes", "products", "reductions", "indexing", "convolutions", "sorting")
ALIGNED = {bp.rules[lax.select_and_scatter_p]}  # no window of its cases goes over the cut
FREE = (Role.DIVISIBLE, Role.SUMMED)


def chapters() -> list[Any]:
    found: dict[str, list[Rule]] = defaultdict(list)
    for rule in bp.rules.values():
        found[Path(rule.file).stem].append(rule)
    return [
        pytest.param(some, id=name, marks=[pytest.mark.long] * (name not in BY_DEFAULT))
        for name, some in found.items()
    ]


@pytest.mark.parametrize("some", chapters())
def test_what_is_divisible_or_summed_can_be_computed_in_pieces(some: list[Rule]) -> None:
    found = cuts_of(some)
    wrong = [f"{c.what}: {c.difference}" for c in found if c.role in FREE and c.difference]
    assert not wrong, "\n".join(wrong)
    for rule in some:
        for role in {c.role for c in found if c.rule is rule and rule not in ALIGNED} - {*FREE}:
            cut = [c.difference for c in found if (c.rule, c.role) == (rule, role)]
            assert any(cut), f"{rule.primitive.name}: {role.value}, and yet always divisible"


def test_every_rule_is_cut_but_those_that_have_nothing_to_cut() -> None:
    """Without running: the cases of nearly all rules have an axis that the relation divides."""
    compared: set[str] = set()
    for rule in bp.rules.values():
        for case in rule.cases:
            args = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in case.draw()]
            jaxpr, _ = _jax.open_jaxpr(jax.make_jaxpr(case.function)(*args))
            for eqn in equations(jaxpr):
                axes = axes_of(eqn) if eqn.primitive is rule.primitive else None
                if axes and any(axes.role(label) in FREE for label in axes.places):
                    compared.add(rule.primitive.name)
    assert len(compared) > 170


def planted(some: Primitive, axes: Callable[[Any], Axes]) -> list[str]:
    """What is found where the rule of a primitive has other axes than its own."""
    return [c.difference for c in cuts_of([replace(rules[some], axes="")], axes) if c.role in FREE]


def test_a_running_sum_is_not_elementwise() -> None:
    wrong = lambda eqn: elementwise([v.aval for v in eqn.invars], [v.aval for v in eqn.outvars])
    assert any(planted(lax.cumsum_p, wrong))


def test_what_is_contracted_is_not_summed_as_a_maximum() -> None:
    wrong = lambda eqn: replace(axes_of(eqn) or relate((), ()), combine="max")
    assert any(planted(lax.dot_general_p, wrong))


def test_a_transposition_moves_axes() -> None:
    wrong = lambda eqn: relate(*2 * [[range(len(eqn.invars[0].aval.shape))]])
    assert any(planted(lax.transpose_p, wrong))
