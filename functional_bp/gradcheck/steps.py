"""``check_steps``: a whole derivation, one cotangent after the other, from the output backwards.

A step is judged by itself, given the ones before it as claimed (``cuts``): an error in h̄ does not
make z̄ wrong if z̄ follows from it.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from functional_bp import _jax
from functional_bp.engine.sweeps import evaluate
from functional_bp.errors import compose
from functional_bp.gradcheck.claims import resolve, roundings_of
from functional_bp.gradcheck.clock import now
from functional_bp.gradcheck.diagnosis.diagnose import describe_values, diagnose
from functional_bp.gradcheck.findings import Finding, Outcome, Row, Verdict, worst_entries
from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.input_classes import NEAR, draw
from functional_bp.gradcheck.report import Report
from functional_bp.gradcheck.subject import (
    Arrays,
    Disagreement,
    Flattening,
    Sample,
    Subject,
    active_outputs,
    distance,
    double,
    normal,
)
from functional_bp.graph import interpret
from functional_bp.graph.names import function_name

# A function's graph, cut at named intermediates, and what people claim of their cotangents.
#
# Every claimed intermediate h becomes a cut of the graph: its value is handed on as an independent
# input. One VJP of the cut graph, seeded with the claimed h̄ at every cut and with 1 at the
# output, then gives each node's cotangent *as it follows from the claims downstream of it*::
#
#     z̄ = Σ (∂h/∂z)ᵀ h̄ over the claimed h that z reaches without passing another, + the way to J


class Cut:
    """The graph of a scalar function, cut at the intermediates that are claimed.

    Args:
        fun: the function.
        args: where it is called.
        claims: by name, of intermediates and arguments.

    Attributes:
        names: the arguments' names.
        actives: their values, in float64.
        order: the cuts' names, in the order in which they are computed.

    Raises:
        TypeError: the output is no scalar.
        ValueError: a claim is for a name that the function does not have.
    """

    def __init__(
        self, fun: Callable[..., Any], args: Sequence[Any], claims: Mapping[str, Any]
    ) -> None:
        flat = Flattening(fun, args)
        self.names, self.fixed_names = flat.names, flat.fixed_names
        self.actives, self.fixed = tuple(map(_wide, flat.actives)), tuple(map(_wide, flat.others))
        closed = jax.make_jaxpr(lambda a, f: active_outputs(fun(*flat.join(a, f))))(
            self.actives, self.fixed
        )
        self.jaxpr, self.consts = _jax.open_jaxpr(closed)
        shapes = [getattr(v.aval, "shape", None) for v in self.jaxpr.outvars]
        if shapes != [()]:
            raise TypeError(
                compose(
                    f"{function_name(fun)} has no single gradient to derive",
                    got=f"outputs of the shapes {shapes}",
                    expected="a real scalar",
                )
            )
        self.wanted = _wanted(claims, list(_tags(self.jaxpr)), flat.names)
        self.order = list(self._run(self.actives, {})[1])

    def _run(self, actives: Sequence[Any], cuts: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The output, and the cuts' values before they are replaced by ``cuts``."""
        before: dict[str, Any] = {}

        def step(eqn: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
            tag = _tag(eqn)
            if tag in self.wanted:
                before[tag] = operands[0]
                return [cuts.get(tag, operands[0])]
            inside = interpret.inner_graphs(eqn)
            if any(self.wanted & set(_tags(inner.jaxpr)) for inner in inside):
                return interpret.interpret(inside[0].jaxpr, inside[0].consts, operands, step)
            return evaluate(eqn, operands)

        (out,) = interpret.interpret(self.jaxpr, self.consts, [*actives, *self.fixed], step)
        return out, before

    def values(self, actives: Arrays | None = None) -> dict[str, np.ndarray]:
        """Arguments and cuts by name, at the given arguments or at others."""
        actives = self.actives if actives is None else actives
        named = {
            **dict(zip(self.names, actives)),
            **dict(zip(self.fixed_names, self.fixed)),
            **self._run(actives, {})[1],
        }
        return {name: np.asarray(value) for name, value in named.items()}

    def pull(self, bars: Mapping[str, Any], actives: Arrays | None = None) -> dict[str, np.ndarray]:
        """Every cotangent as it follows from the cuts' cotangents ``bars``."""
        actives = self.actives if actives is None else actives
        values = self._run(actives, {})[1]
        _, pullback = jax.vjp(self._run, actives, values)
        seeds = {t: jnp.asarray(bars[t], v.dtype).reshape(v.shape) for t, v in values.items()}
        on_arguments, on_cuts = pullback((jnp.ones(()), seeds))
        found = {**dict(zip(self.names, on_arguments)), **on_cuts}
        return {name: double(bar) for name, bar in found.items()}

    def true_bars(self) -> dict[str, np.ndarray]:
        """The true cotangents: each cut's from the output backwards, seeded with those before."""
        values = self.values()
        found = {t: np.zeros(values[t].shape) for t in self.order}
        for _ in range(len(self.order) + 1):
            found = self.pull({t: found[t] for t in self.order})
        return found

    def full_name(self, name: str) -> str:
        """The name that a person means by the whole of it or by its last part."""
        return name if name in self.order else resolve(name, self.names)


def evaluate_claims(claims: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Claims as arrays; functions are called once what their parameters name is there.

    Args:
        claims: by full name, in any order.
        values: arguments and intermediates by name.
    """
    done: dict[str, np.ndarray] = {}
    waiting = dict(claims)
    while waiting:
        ready = [n for n, c in waiting.items() if not callable(c) or not missing(c, values, done)]
        if not ready:
            first = next(iter(waiting))
            raise ValueError(
                compose(
                    f"the claim for {first!r} asks for "
                    + ", ".join(missing(waiting[first], values, done)),
                    expected="values by name, or cotangents that are claimed too, with _bar: "
                    + ", ".join([*map(short, values), *(f"{short(n)}_bar" for n in claims)]),
                )
            )
        for name in ready:
            claim = waiting.pop(name)
            if callable(claim):
                claim = claim(**{p: given(p, values, done) for p in parameters(claim)})
            done[name] = double(claim)
    return done


def missing(
    claim: Callable[..., Any], values: Mapping[str, Any], bars: Mapping[str, Any]
) -> list[str]:
    """The parameters of a claim that nothing is there for yet."""
    return [p for p in parameters(claim) if given(p, values, bars) is None]


def given(parameter: str, values: Mapping[str, Any], bars: Mapping[str, Any]) -> Any:
    """The value or claimed cotangent that a claim's parameter names, None if there is none."""
    if parameter.endswith("_bar"):
        stem = parameter.removesuffix("_bar")
        for name, bar in bars.items():
            if stem in (name, short(name)):
                return jnp.asarray(bar)
    for name, value in values.items():
        if parameter in (name, short(name)):
            return jnp.asarray(value)
    return None


def parameters(claim: Callable[..., Any]) -> list[str]:
    """The names of a claim's parameters."""
    return list(inspect.signature(claim).parameters)


def short(name: str) -> str:
    """``W1`` of ``params['W1']``."""
    return name.rstrip("']").replace("['", ".").replace("[", ".").rsplit(".", 1)[-1]


def _wide(x: Any) -> Any:
    return jnp.asarray(double(x)) if jnp.issubdtype(x.dtype, jnp.inexact) else x


def _tag(eqn: JaxprEqn) -> str | None:
    eqn = _jax.as_checkpoint(eqn)
    return eqn.params["name"] if eqn.primitive.name == "name" else None


def _tags(jaxpr: Jaxpr) -> Iterable[str]:
    for eqn in interpret.equations(jaxpr):
        tag = _tag(eqn)
        if tag is not None and not isinstance(eqn.outvars[0], Literal):
            yield tag


def _wanted(claims: Iterable[str], tags: Sequence[str], names: Sequence[str]) -> set[str]:
    """The claimed names that are intermediates; the others must be arguments."""
    wanted = {name for name in claims if name in tags}
    for name in claims:
        if name in tags and tags.count(name) > 1:
            raise ValueError(f"two intermediates are called {name!r}; give each its own name")
        if name not in tags:
            try:
                resolve(name, names)
            except ValueError:
                raise ValueError(
                    compose(
                        f"nothing is called {name!r}",
                        got=f"a claim for {name!r}",
                        expected="an intermediate or an argument: " + ", ".join([*tags, *names]),
                        do=f'name the intermediate in the function: bp.name(value, "{name}")',
                    )
                ) from None
    return wanted


DIAGNOSIS_SECONDS = 3.0
DRAWS = 16  # of roundings
TOO_COARSE = 0.5  # of a cotangent: beyond that, roundings could hide a wrong one
DEVIATIONS = 3.0  # of ±r: five of the standard deviations of a rounding, which is less than r


@np.errstate(all="ignore")  # what is not finite is for the report
def check_steps(
    fun: Callable[..., Any],
    *args: Any,
    claims: Mapping[str, Any],
    name: str | None = None,
) -> Report:
    """Is a derivation right, step by step, and which step is the first that is not.

    Args:
        fun: a function with a real scalar output, whose intermediates carry names:
            ``h = bp.name(jnp.tanh(z), "h")``.
        *args: the point at which its gradient is taken.
        claims: cotangents by name, of intermediates and of arguments: ``{"o": o_bar, "h": …,
            "W1": …}``. A value is an array; or a function whose parameters say what it is given:
            values by name, claimed cotangents by name with ``_bar``
            (``"h": lambda o_bar, W2: W2.T @ o_bar``). Numbers that all have two to six decimals
            count as rounded to those, and what follows from them may be off by as much as that
            makes of it.
        name: what to call it in the report.

    Returns:
        A report. Its findings name the first wrong step; every later one is judged given the
        earlier as claimed.

    Raises:
        ValueError: a claim is for a name that the function does not have.
        TypeError: the output is no scalar.

    Example:
        >>> import functional_bp as bp, jax.numpy as jnp
        >>> def loss(w, x):
        ...     z = bp.name(w * x, "z")
        ...     return jnp.sum(z**2)
        >>> w, x = jnp.array([1.0, 2.0]), jnp.array([3.0, 1.0])
        >>> bp.check_steps(loss, w, x, claims={
        ...     "z": lambda z: 2 * z, "w": lambda z_bar, x: z_bar * x}).verdict
        'right'
    """
    started = time.monotonic()
    with jax.enable_x64(True):
        cut = Cut(fun, args, claims)
        named = {cut.full_name(key): claim for key, claim in claims.items()}
        values = cut.values()
        claimed = evaluate_claims(named, values)
        true = cut.true_bars()
        fitting = {k: v for k, v in claimed.items() if v.shape == true[k].shape}
        seeds = {t: fitting.get(t, true[t]) for t in cut.order}
        following = cut.pull(seeds)
        own, rounding = _roundings(cut, named, seeds, following)
        rows: list[Row] = []
        findings: list[Finding] = []
        notes: list[str] = []
        reasons: list[str] = []
        for step in _backwards(cut, claimed):
            ours, theirs = claimed[step], following[step]
            wrong = _wrong_entries(ours, theirs, rounding[step])
            is_true = _wrong_entries(ours, true[step], rounding[step]) is None
            follows = wrong is None and not is_true and distance(ours, true[step]) > 1e-6
            limit = distance(theirs + rounding[step], theirs) if rounding[step].any() else None
            is_open = wrong is None and limit is not None and limit > TOO_COARSE
            is_open = is_open and _wrong_entries(ours, theirs, own[step]) is not None
            if is_open:
                reasons.append(
                    f"the cotangent of {step} is not decided: for the digits that the steps before "
                    f"it lack, it may be off by {limit:.0%}; write down more of them"
                )
            rows.append(
                Row(
                    f"cotangent of {step}",
                    Outcome.UNRESOLVED
                    if is_open
                    else Outcome.RIGHT
                    if wrong is None
                    else Outcome.WRONG,
                    distance(ours, theirs) if ours.shape == theirs.shape else None,
                    limit,
                    against="follows from the steps before, as claimed"
                    if follows
                    else "the chain rule from the steps before",
                )
            )
            if follows:
                notes.append(
                    f"the cotangent of {step} is not the true one, but it follows rightly from the "
                    "wrong step before"
                )
            if wrong is not None:
                findings.append(
                    _finding(cut, step, named[step], seeds, ours, theirs, wrong, rounding[step])
                )
    if findings:
        notes.insert(0, f"the first wrong step is the cotangent of {findings[0].argument}")
    return Report(
        name=name or function_name(fun),
        verdict=Verdict.WRONG if findings else Verdict.INCONCLUSIVE if reasons else Verdict.RIGHT,
        findings=tuple(findings),
        rows=tuple(rows),
        notes=tuple(notes),
        reasons=tuple(reasons),
        seconds=time.monotonic() - started,
        settings={"jax": jax.__version__, "backend": jax.default_backend(),
                  "precision": "float64", "reference": "the chain rule"},
    )  # fmt: skip


def _backwards(cut: Cut, claimed: Mapping[str, Any]) -> list[str]:
    """The claimed names from the output backwards: intermediates, then arguments."""
    first = [t for t in reversed(cut.order) if t in claimed]
    return first + [name for name in claimed if name not in cut.order]


def _roundings(
    cut: Cut,
    claims: Mapping[str, Any],
    seeds: Mapping[str, np.ndarray],
    following: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """How far each step's entries may be off for the digits that were not written down.

    For those of the step's own numbers; and, besides, for those of the steps before it that it
    follows from: roundings by ±r move an entry by Σⱼ ±Jᵢⱼ rⱼ, of which draws give the standard
    deviation.
    """
    units = dict(zip(claims, roundings_of(list(claims.values()))))
    own = {step: np.full(following[step].shape, r) for step, r in units.items()}
    if not any(units.get(step, 0.0) for step in cut.order):
        return own, own
    rng = np.random.default_rng(0)
    squares = {step: np.zeros(bar.shape) for step, bar in own.items()}
    for _ in range(DRAWS):
        moved = {
            step: bar + units.get(step, 0.0) * rng.choice([-1.0, 1.0], bar.shape)
            for step, bar in seeds.items()
        }
        for step, bar in cut.pull(moved).items():
            if step in squares:
                squares[step] += (bar - following[step]) ** 2 / DRAWS
    return own, {step: r + DEVIATIONS * np.sqrt(squares[step]) for step, r in own.items()}


def _wrong_entries(
    claimed: np.ndarray, true: np.ndarray, rounding: np.ndarray
) -> np.ndarray | None:
    """Where a step's cotangent is wrong; None where it is right."""
    if claimed.shape != true.shape:
        return np.ones(true.shape, bool)
    limit = rounding + 1e-9 * np.max(np.abs(true), initial=0.0) + 1e-9 * np.abs(true)
    with np.errstate(all="ignore"):
        wrong = ~(np.abs(claimed - true) <= limit)
    return wrong if wrong.any() else None


def _finding(
    cut: Cut,
    step: str,
    claim: Any,
    seeds: Mapping[str, Any],
    claimed: np.ndarray,
    true: np.ndarray,
    wrong: np.ndarray,
    rounding: np.ndarray,
) -> Finding:
    """What is wrong with one step, diagnosed where its claim is a function."""
    if claimed.shape != true.shape:
        message = f"the cotangent of {step} has shape {claimed.shape}, {step} has {true.shape}"
        return Finding("structure", message, argument=step, stage="cotangent")
    diagnosis = _of_function(cut, step, claim, seeds, wrong) if callable(claim) else None
    if diagnosis is None or not diagnosis.message:
        kind, message = describe_values(step, claimed, true, float(rounding.max(initial=0.0)))
        diagnosis = Finding(kind, message)
    said = f"the cotangent of {step} does not follow from the steps before it: "
    return replace(
        diagnosis,
        message=said + diagnosis.message,
        argument=step,
        also=(),
        relative_error=distance(claimed, true),
        wrong_entries=int(wrong.sum()),
        size=int(wrong.size),
        entries=worst_entries(claimed, true),
    )


def _of_function(
    cut: Cut, step: str, claim: Callable[..., Any], seeds: Mapping[str, Any], wrong: np.ndarray
) -> Finding | None:
    """The diagnosis of a claim that is a function: a pullback from the cotangents it names.

    Its operands are the step's own value, whose cotangent is judged, and the values that it names.
    """
    asked = parameters(claim)
    values = cut.values()
    of_bars = [p for p in asked if p.endswith("_bar") and given(p, {}, seeds) is not None]
    of_values = [p for p in asked if p not in of_bars]
    rng = np.random.default_rng(11)

    def operands(at: Mapping[str, Any]) -> tuple[np.ndarray, ...]:
        return (at[step], *(np.asarray(given(p, at, {})) for p in of_values))

    def backward(kept: Mapping[str, Any], _: Any, bars: tuple[Any, ...]) -> tuple[Any, ...]:
        found = claim(**{p: kept[p] for p in of_values}, **dict(zip(of_bars, bars)))
        return (found, *(0 * kept[p] for p in of_values))

    def sample(at: Mapping[str, Any], bars: Mapping[str, Any], true: Any) -> Sample:
        actives = operands(at)
        given_bars = tuple(np.asarray(given(p, {}, bars)) for p in of_bars)
        kept = dict(zip(of_values, actives[1:]))
        found = tuple(map(double, backward(kept, (), given_bars)))
        zeros = tuple(np.zeros_like(f) for f in found[1:])
        return Sample(actives, (), given_bars, given_bars, found, (double(true), *zeros))

    def fresh() -> Sample:
        moved, _ = draw(NEAR, cut.actives, (), rng)
        bars = {t: normal(rng, np.zeros(np.shape(b))) for t, b in seeds.items()}
        return sample(cut.values(moved), bars, cut.pull(bars, moved)[step])

    here = None
    with Guard(f"the claim for {step}"):
        here = sample(values, seeds, cut.pull(seeds)[step])
    if here is None:  # it only works on the types it was written for
        return None
    subject = Subject(
        name=step,
        names=(step, *of_values),
        actives=here.actives,
        fixed=(),
        value=lambda actives, fixed: here.bars,
        pull=lambda actives, fixed, bars: (
            bars, backward(dict(zip(of_values, actives[1:])), fixed, bars)
        ),
        residuals=lambda actives, fixed: dict(zip(of_values, actives[1:])),
        backward=backward,
        source=claim,
    )  # fmt: skip
    masks = (wrong, *(np.zeros(np.shape(a), bool) for a in here.actives[1:]))
    found = diagnose(Disagreement(subject, 0, here, masks, fresh), now() + DIAGNOSIS_SECONDS)
    return _with_names(found, of_bars)


def _with_names(diagnosis: Finding, of_bars: list[str]) -> Finding:
    """The diagnosis with the cotangents' own names in place of ``y_bar``."""
    places = {"y_bar": of_bars[0]} if len(of_bars) == 1 else {
        f"y_bar[{i}]": name for i, name in enumerate(of_bars)
    }  # fmt: skip

    def renamed(text: str) -> str:
        for place, name in places.items():
            text = text.replace(place, name)
        return text

    explanations = tuple(map(renamed, diagnosis.explanations))
    return replace(diagnosis, message=renamed(diagnosis.message), explanations=explanations)
