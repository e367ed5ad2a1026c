"""``check_steps`` goes through a derivation, cotangent by cotangent, from the output backwards.

Every claimed intermediate h becomes a cut of the function's graph: its value is handed on as an
independent input. One VJP of the cut graph, seeded with the claimed h̄ at every cut and with 1 at
the output, then gives each node's cotangent *as it follows from the claims downstream of it*::

    z̄ = Σ (∂h/∂z)ᵀ h̄ over the claimed h that z reaches without passing another, + the way to J

So a step is judged by itself, given the ones before it as claimed: an error in h̄ does not make z̄
wrong if z̄ follows from it.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from functional_bp import _jax
from functional_bp.engine.sweeps import evaluate
from functional_bp.errors import ClaimError
from functional_bp.gradcheck.claims import resolve, roundings_of
from functional_bp.gradcheck.clock import now
from functional_bp.gradcheck.diagnosis.diagnose import describe_values, diagnose
from functional_bp.gradcheck.findings import Finding, Kind, Outcome, Row, Verdict, worst_entries
from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.input_classes import NEAR, draw
from functional_bp.gradcheck.report import Report
from functional_bp.gradcheck.subject import (
    Arrays,
    Disagreement,
    Flattening,
    Sample,
    Subject,
    distance,
    double,
    normal,
)
from functional_bp.graph import interpret
from functional_bp.graph.names import function_name

DIAGNOSIS_SECONDS = 3.0
DRAWS = 16  # of roundings
TOO_COARSE = 0.5  # of a cotangent: beyond that, roundings could hide a wrong one
DEVIATIONS = 3.0  # of ±r: five of the standard deviations of a rounding, which is less than r

Named = Mapping[str, Any]


@np.errstate(all="ignore")  # what is not finite is for the report
def check_steps(
    fun: Callable[..., Any],
    *args: Any,
    claims: Mapping[str, Any],
    name: str | None = None,
) -> Report:
    """Say whether a derivation is right, and which step is the first that is not.

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
        ClaimError: a claim is for a name that the function has not; the output is no scalar.

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
        steps, seeds = _steps(cut, {cut.full_name(key): claim for key, claim in claims.items()})
        wrong = [step for step in steps if step.outcome is Outcome.WRONG]
        findings = tuple(_finding(cut, step, seeds) for step in wrong)
    notes = [f"the first wrong step is the cotangent of {step.name}" for step in wrong[:1]]
    notes += [
        f"the cotangent of {step.name} is not the true one, but it follows rightly from the "
        "wrong step before"
        for step in steps if step.follows_from_a_wrong_one
    ]  # fmt: skip
    notes += [f"the diagnosis of {finding.argument} was cut short: its time was up"
              for finding in findings if finding.cut_short]  # fmt: skip
    reasons = [
        f"the cotangent of {step.name} is not decided: for the digits that the steps before "
        f"it lack, it may be off by {step.limit:.0%}; write down more of them"
        for step in steps if step.outcome is Outcome.UNRESOLVED
    ]  # fmt: skip
    return Report(
        name=name or function_name(fun),
        verdict=Verdict.WRONG if wrong else Verdict.INCONCLUSIVE if reasons else Verdict.RIGHT,
        findings=findings,
        rows=tuple(step.row for step in steps),
        notes=tuple(notes),
        reasons=tuple(reasons),
        seconds=time.monotonic() - started,
        settings={"jax": jax.__version__, "backend": jax.default_backend(),
                  "precision": "float64", "reference": "the chain rule"},
    )  # fmt: skip


@dataclass(frozen=True)
class ClaimedStep:
    """A step is one cotangent of a derivation, as it is claimed and as it should be.

    Attributes:
        name: of the value whose cotangent it is.
        claim: the array or function that a person gave.
        claimed: its value.
        following: the cotangent as it follows from the claims downstream of it.
        true: the true cotangent.
        own_rounding: how far its entries may be off for the digits that it was written with.
        rounding: the same, for the digits of the steps before it as well.
    """

    name: str
    claim: Any
    claimed: np.ndarray
    following: np.ndarray
    true: np.ndarray
    own_rounding: np.ndarray
    rounding: np.ndarray

    @cached_property
    def wrong_entries(self) -> np.ndarray:
        """Tell where it does not follow from the steps before it."""
        return _apart(self.claimed, self.following, self.rounding)

    @cached_property
    def limit(self) -> float | None:
        """Tell how far it may be off for the digits that were not written down; None for none."""
        moved = self.following + self.rounding
        return distance(moved, self.following) if self.rounding.any() else None

    @cached_property
    def outcome(self) -> Outcome:
        """Return how it came out: ``UNRESOLVED`` where roundings before it could hide an error."""
        if self.wrong_entries.any():
            return Outcome.WRONG
        if self.limit is not None and self.limit > TOO_COARSE:
            if _apart(self.claimed, self.following, self.own_rounding).any():
                return Outcome.UNRESOLVED
        return Outcome.RIGHT

    @property
    def follows_from_a_wrong_one(self) -> bool:
        """Tell whether it is right given the steps before it, and yet not the true cotangent."""
        if self.outcome is Outcome.WRONG or distance(self.claimed, self.true) <= 1e-6:
            return False
        return bool(_apart(self.claimed, self.true, self.rounding).any())

    @property
    def row(self) -> Row:
        """Return its line of the report's table."""
        fits = self.claimed.shape == self.following.shape
        follows = self.follows_from_a_wrong_one
        return Row(
            f"cotangent of {self.name}",
            self.outcome,
            distance(self.claimed, self.following) if fits else None,
            self.limit,
            "follows from the steps before, as claimed"
            if follows
            else "the chain rule from the steps before",
        )


def _apart(claimed: np.ndarray, true: np.ndarray, rounding: np.ndarray) -> np.ndarray:
    """The entries in which two cotangents differ by more than rounding explains."""
    if claimed.shape != true.shape:
        return np.ones(true.shape, bool)
    limit = rounding + 1e-9 * np.max(np.abs(true), initial=0.0) + 1e-9 * np.abs(true)
    return ~(np.abs(claimed - true) <= limit)


def _steps(cut: Cut, claims: Named) -> tuple[list[ClaimedStep], dict[str, np.ndarray]]:
    """The steps from the output backwards, and the cotangents that each cut is seeded with."""
    claimed, true = _evaluated(claims, cut.values()), cut.true_bars()
    fits = {name: bar for name, bar in claimed.items() if bar.shape == true[name].shape}
    seeds = {cut_at: fits.get(cut_at, true[cut_at]) for cut_at in cut.order}
    following = cut.pull(seeds)
    own, rounding = _roundings(cut, claims, seeds, following)
    first = [name for name in reversed(cut.order) if name in claims]
    order = first + [name for name in claims if name not in cut.order]
    columns = (claims, claimed, following, true, own, rounding)
    return [ClaimedStep(name, *(column[name] for column in columns)) for name in order], seeds


def _roundings(
    cut: Cut, claims: Named, seeds: Mapping[str, np.ndarray], following: Mapping[str, np.ndarray]
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


class Cut:
    """A cut is the graph of a scalar function, cut at the intermediates that are claimed.

    Args:
        fun: the function.
        args: where it is called.
        claims: by name, of intermediates and arguments.

    Attributes:
        names: the arguments' names.
        actives: their values, in float64.
        order: the cuts' names, in the order in which they are computed.

    Raises:
        ClaimError: a claim is for a name that the function has not; the output is no scalar.
    """

    def __init__(
        self, fun: Callable[..., Any], args: Sequence[Any], claims: Mapping[str, Any]
    ) -> None:
        flat = Flattening(fun, args)
        self.names, self.fixed_names = flat.names, flat.fixed_names
        self.actives, self.fixed = tuple(map(_wide, flat.actives)), tuple(map(_wide, flat.others))
        closed = jax.make_jaxpr(flat.outputs_of(fun))(self.actives, self.fixed)
        self.jaxpr, self.consts = _jax.open_jaxpr(closed)
        shapes = [getattr(v.aval, "shape", None) for v in self.jaxpr.outvars]
        if shapes != [()]:
            raise ClaimError(
                f"{function_name(fun)} has no single gradient to derive",
                got=f"outputs of the shapes {shapes}",
                expected="a real scalar",
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
        """Return arguments and cuts by name, at the given arguments or at others."""
        actives = self.actives if actives is None else actives
        named = {
            **dict(zip(self.names, actives)),
            **dict(zip(self.fixed_names, self.fixed)),
            **self._run(actives, {})[1],
        }
        return {name: np.asarray(value) for name, value in named.items()}

    def pull(self, bars: Mapping[str, Any], actives: Arrays | None = None) -> dict[str, np.ndarray]:
        """Return every cotangent as it follows from the cuts' cotangents ``bars``."""
        actives = self.actives if actives is None else actives
        values = self._run(actives, {})[1]
        _, pullback = jax.vjp(self._run, actives, values)
        seeds = {t: jnp.asarray(bars[t], v.dtype).reshape(v.shape) for t, v in values.items()}
        on_arguments, on_cuts = pullback((jnp.ones(()), seeds))
        found = {**dict(zip(self.names, on_arguments)), **on_cuts}
        return {name: double(bar) for name, bar in found.items()}

    def true_bars(self) -> dict[str, np.ndarray]:
        """Return the true cotangents, each cut's seeded with those that come after it."""
        values = self.values()
        found = {t: np.zeros(values[t].shape) for t in self.order}
        for _ in range(len(self.order) + 1):
            found = self.pull({t: found[t] for t in self.order})
        return found

    def full_name(self, name: str) -> str:
        """Return the name that a person means by the whole of it or by its last part."""
        return name if name in self.order else resolve(name, self.names)


def _evaluated(claims: Named, values: Named) -> dict[str, np.ndarray]:
    """Claims as arrays; functions are called once what their parameters name is there."""
    done: dict[str, np.ndarray] = {}
    scope = _by_name(values)
    waiting = dict(claims)
    while waiting:
        scope |= _by_name(done, "_bar")
        missing = {n: [p for p in _parameters(c) if p not in scope] for n, c in waiting.items()}
        ready = [name for name, names in missing.items() if not names]
        if not ready:
            first = next(iter(waiting))
            raise ClaimError(
                f"the claim for {first!r} asks for {', '.join(missing[first])}",
                expected="values by name, or cotangents that are claimed too, with _bar: "
                + ", ".join([*map(_short, values), *(f"{_short(n)}_bar" for n in claims)]),
            )
        for name in ready:
            claim = waiting.pop(name)
            if callable(claim):
                claim = claim(**{p: jnp.asarray(scope[p]) for p in _parameters(claim)})
            done[name] = double(claim)
    return done


def _by_name(values: Named, ending: str = "") -> dict[str, Any]:
    """What a claim's parameters can name: each value by its name, and by the last part of it."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found.setdefault(name + ending, value)
        found.setdefault(_short(name) + ending, value)
    return found


def _parameters(claim: Any) -> list[str]:
    """The names of a claim's parameters; none where it is an array."""
    return list(inspect.signature(claim).parameters) if callable(claim) else []


def _short(name: str) -> str:
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
            raise ClaimError(f"two intermediates are called {name!r}; give each its own name")
        if name not in tags:
            try:
                resolve(name, names)
            except ClaimError:
                raise ClaimError(
                    f"nothing is called {name!r}",
                    got=f"a claim for {name!r}",
                    expected="an intermediate or an argument: " + ", ".join([*tags, *names]),
                    do=f'name the intermediate in the function: bp.name(value, "{name}")',
                ) from None
    return wanted


def _finding(cut: Cut, step: ClaimedStep, seeds: Named) -> Finding:
    """What is wrong with one step, diagnosed where its claim is a function."""
    name, claimed, true = step.name, step.claimed, step.following
    if claimed.shape != true.shape:
        message = f"the cotangent of {name} has shape {claimed.shape}, {name} has {true.shape}"
        return Finding(Kind.STRUCTURE, message, argument=name)
    diagnosis = _of_function(cut, step, seeds) if callable(step.claim) else None
    if diagnosis is None or not diagnosis.message:
        rounding = float(step.rounding.max(initial=0.0))
        diagnosis = Finding(*describe_values(name, claimed, true, rounding))
    said = f"the cotangent of {name} does not follow from the steps before it: "
    return replace(
        diagnosis,
        message=said + diagnosis.message,
        argument=name,
        also=(),
        relative_error=distance(claimed, true),
        wrong_entries=int(step.wrong_entries.sum()),
        size=int(step.wrong_entries.size),
        entries=worst_entries(claimed, true),
    )


def _of_function(cut: Cut, step: ClaimedStep, seeds: Named) -> Finding | None:
    """The diagnosis of a claim that is a function: a pullback from the cotangents it names.

    Its operands are the step's own value, whose cotangent is judged, and the values that it names.
    """
    name, claim = step.name, step.claim
    asked, known = _parameters(claim), _by_name(seeds, "_bar")
    of_bars = [p for p in asked if p in known]
    of_values = [p for p in asked if p not in known]
    rng = np.random.default_rng(11)

    def backward(kept: Named, _: Any, bars: Arrays) -> Arrays:
        found = claim(**{p: kept[p] for p in of_values}, **dict(zip(of_bars, bars)))
        return (found, *(0 * kept[p] for p in of_values))

    def sample(at: Named, bars: Named, true: Any) -> Sample:
        scope, cotangents = _by_name(at), _by_name(bars, "_bar")
        kept = {p: np.asarray(scope[p]) for p in of_values}
        given = tuple(np.asarray(cotangents[p]) for p in of_bars)
        found = tuple(map(double, backward(kept, (), given)))
        zeros = tuple(np.zeros_like(f) for f in found[1:])
        return Sample((at[name], *kept.values()), (), given, given, found, (double(true), *zeros))

    def fresh() -> Sample:
        moved, _ = draw(NEAR, cut.actives, (), rng)
        bars = {t: normal(rng, np.zeros(np.shape(b))) for t, b in seeds.items()}
        return sample(cut.values(moved), bars, cut.pull(bars, moved)[name])

    here = None
    with Guard(f"the claim for {name}"):
        here = sample(cut.values(), seeds, step.following)
    if here is None:  # it only works on the types it was written for
        return None
    residuals = lambda actives, fixed: dict(zip(of_values, actives[1:]))
    subject = Subject(
        name=name,
        names=(name, *of_values),
        actives=here.actives,
        fixed=(),
        value=lambda actives, fixed: here.bars,
        pull=lambda actives, fixed, bars: (bars, backward(residuals(actives, fixed), fixed, bars)),
        bar_names=tuple(of_bars),
        residuals=residuals,
        backward=backward,
        source=claim,
    )
    masks = (step.wrong_entries, *(np.zeros(np.shape(a), bool) for a in here.actives[1:]))
    return diagnose(Disagreement(subject, 0, here, masks, fresh), now() + DIAGNOSIS_SECONDS)
