"""``check_steps``: a whole derivation, one cotangent after the other, from the output backwards.

Every claimed intermediate h becomes a cut of the graph: its value is handed on as an independent
input. One VJP of the cut graph, seeded with the claimed h̄ at every cut and with 1 at the output,
then gives each node's cotangent *as it follows from the claims downstream of it*::

    z̄ = Σ (∂h/∂z)ᵀ h̄ over the claimed h that z reaches without passing another, + the way to J

So a step is judged by itself: an error in h̄ does not make z̄ wrong if z̄ follows from it.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from functional_bp import _jax
from functional_bp.backprop import evaluate
from functional_bp.check import graphs
from functional_bp.check.arrays import distance, double
from functional_bp.check.claims import resolve, rounding_of
from functional_bp.check.diagnosis import describe_values
from functional_bp.check.findings import Finding, Row, worst_entries
from functional_bp.check.flattening import Flattening, active_outputs
from functional_bp.check.report import Report
from functional_bp.errors import compose
from functional_bp.graph.names import function_name


class _Cut(NamedTuple):
    """A function whose named values are inputs: what is needed to judge each by itself."""

    flat: Flattening
    order: list[str]  # the cut names, in the order in which they are computed
    values: dict[str, np.ndarray]  # of cuts and arguments
    pull: Callable[[Mapping[str, Any]], dict[str, np.ndarray]]  # claimed bars of cuts → all bars


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
            (``"h": lambda o_bar, W2: W2.T @ o_bar``).
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
    title = name or function_name(fun)
    with jax.enable_x64(True):
        cut = _cut(fun, args, claims)
        claimed = _evaluate_claims(cut, claims)
        true = _true_bars(cut)
        fitting = {k: v for k, v in claimed.items() if v.shape == true[k].shape}
        following = cut.pull({t: fitting.get(t, true[t]) for t in cut.order})
    rows: list[Row] = []
    findings: list[Finding] = []
    notes: list[str] = []
    for step in _backwards(cut, claimed):
        ours, theirs = claimed[step], following[step]
        finding = _judge(step, ours, theirs, rounding_of(claims_by(claims, cut, step)))
        error = distance(ours, theirs) if ours.shape == theirs.shape else None
        if finding is None:
            follows = distance(ours, true[step]) > 1e-6
            rows.append(
                Row(f"cotangent of {step}", "right", error,
                    against="follows from the steps before, as claimed" if follows
                    else "the chain rule from the steps before")
            )  # fmt: skip
            if follows:
                notes.append(
                    f"the cotangent of {step} is not the true one, but it follows rightly from the "
                    "wrong step before"
                )
            continue
        rows.append(
            Row(f"cotangent of {step}", "wrong", error,
                against="the chain rule from the steps before")
        )  # fmt: skip
        findings.append(finding)
    if findings:
        notes.insert(0, f"the first wrong step is the cotangent of {findings[0].argument}")
    return Report(
        name=title,
        verdict="wrong" if findings else "right",
        findings=tuple(findings),
        rows=tuple(rows),
        notes=tuple(notes),
        seconds=time.monotonic() - started,
        settings={"jax": jax.__version__, "backend": jax.default_backend(),
                  "precision": "float64", "reference": "the chain rule"},
    )  # fmt: skip


def claims_by(claims: Mapping[str, Any], cut: _Cut, step: str) -> Any:
    """The claim for a step, which a person may have called by the last part of its name."""
    return next(v for k, v in claims.items() if _full_name(cut, k) == step)


def _full_name(cut: _Cut, name: str) -> str:
    return name if name in cut.order else resolve(name, cut.flat.names)


def _judge(step: str, claimed: np.ndarray, true: np.ndarray, rounding: float) -> Finding | None:
    if claimed.shape != true.shape:
        return Finding(
            "structure",
            f"the cotangent of {step} has shape {claimed.shape}, {step} has {true.shape}",
            argument=step,
            stage="steps",
        )
    limit = rounding + 1e-9 * np.max(np.abs(true), initial=0.0) + 1e-9 * np.abs(true)
    with np.errstate(all="ignore"):
        wrong = ~(np.abs(claimed - true) <= limit)
    if not wrong.any():
        return None
    kind, message = describe_values(step, claimed, true)
    return Finding(
        kind,
        f"the cotangent of {step} does not follow from the steps before it: {message}",
        argument=step,
        stage="steps",
        relative_error=distance(claimed, true),
        wrong_entries=int(wrong.sum()),
        size=int(wrong.size),
        entries=worst_entries(claimed, true),
    )


def _cut(fun: Callable[..., Any], args: Sequence[Any], claims: Mapping[str, Any]) -> _Cut:
    """The function's graph, cut at the claimed intermediates."""
    flat = Flattening(fun, args)
    actives, fixed = tuple(map(_wide, flat.actives)), tuple(map(_wide, flat.others))
    closed = jax.make_jaxpr(lambda a, f: active_outputs(fun(*flat.join(a, f))))(actives, fixed)
    jaxpr, consts = _jax.open_jaxpr(closed)
    shapes = [getattr(v.aval, "shape", None) for v in jaxpr.outvars]
    if shapes != [()]:
        raise TypeError(
            compose(
                f"{function_name(fun)} has no single gradient to derive",
                got=f"outputs of the shapes {shapes}",
                expected="a real scalar",
            )
        )
    tags = list(_tags(jaxpr))
    wanted = _wanted(claims, tags, flat)
    leaves = [*actives, *fixed]

    def run(inputs: Sequence[Any], cuts: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        before: dict[str, Any] = {}

        def step(eqn: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
            tag = _tag(eqn)
            if tag in wanted:
                before[tag] = operands[0]
                return [cuts.get(tag, operands[0])]
            inside = graphs.inner_graphs(eqn)
            if any(wanted & set(_tags(inner.jaxpr)) for inner in inside):
                return graphs.interpret(inside[0].jaxpr, inside[0].consts, operands, step)
            return evaluate(eqn, operands)

        (out,) = graphs.interpret(jaxpr, consts, [*inputs, *leaves[len(actives) :]], step)
        return out, before

    values = run(actives, {})[1]
    named = {**dict(zip(flat.names, actives)), **dict(zip(flat.fixed_names, fixed)), **values}
    order = [t for t in values]

    def pull(bars: Mapping[str, Any]) -> dict[str, np.ndarray]:
        _, pullback = jax.vjp(lambda xs, cuts: run(xs, cuts), actives, values)
        seeds = {t: jnp.asarray(bars[t], values[t].dtype).reshape(values[t].shape) for t in order}
        on_arguments, on_cuts = pullback((jnp.ones(()), seeds))
        found = {**dict(zip(flat.names, on_arguments)), **on_cuts}
        return {k: double(v) for k, v in found.items()}

    return _Cut(flat, order, {k: np.asarray(v) for k, v in named.items()}, pull)


def _wide(x: Any) -> Any:
    return jnp.asarray(double(x)) if jnp.issubdtype(x.dtype, jnp.inexact) else x


def _true_bars(cut: _Cut) -> dict[str, np.ndarray]:
    """The true cotangents: each cut's, from the output backwards, seeded with the ones before."""
    bars = {t: np.zeros(cut.values[t].shape) for t in cut.order}
    found: dict[str, np.ndarray] = {}
    for _ in range(len(cut.order) + 1):
        found = cut.pull(bars)
        bars = {t: found[t] for t in cut.order}
    return found


def _evaluate_claims(cut: _Cut, claims: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Claims as arrays; functions are called once what they name is there."""
    done: dict[str, np.ndarray] = {}
    waiting = {_full_name(cut, name): claim for name, claim in claims.items()}
    while waiting:
        ready = [n for n, c in waiting.items() if not callable(c) or _can_call(c, cut, done)]
        if not ready:
            first = next(iter(waiting))
            missing = [p for p in _parameters(waiting[first]) if _given(p, cut, done) is None]
            raise ValueError(
                compose(
                    f"the claim for {first!r} asks for {', '.join(missing)}",
                    expected="values by name, or cotangents that are claimed too, with _bar: "
                    + ", ".join([*map(_short, cut.values), *(f"{_short(n)}_bar" for n in claims)]),
                )
            )
        for name in ready:
            claim = waiting.pop(name)
            if callable(claim):
                claim = claim(**{p: _given(p, cut, done) for p in _parameters(claim)})
            done[name] = double(claim)
    return done


def _can_call(claim: Callable[..., Any], cut: _Cut, done: Mapping[str, Any]) -> bool:
    return all(_given(p, cut, done) is not None for p in _parameters(claim))


def _given(parameter: str, cut: _Cut, done: Mapping[str, Any]) -> Any:
    """The value or claimed cotangent that a claim's parameter names, None if there is none."""
    for table, wanted in ((done, parameter.removesuffix("_bar")), (cut.values, parameter)):
        if table is done and not parameter.endswith("_bar"):
            continue
        for name, value in table.items():
            if wanted in (name, _short(name)):
                return jnp.asarray(value)
    return None


def _parameters(claim: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(claim).parameters)


def _short(name: str) -> str:
    """``W1`` of ``params['W1']``."""
    return name.rstrip("']").replace("['", ".").replace("[", ".").rsplit(".", 1)[-1]


def _backwards(cut: _Cut, claimed: Iterable[str]) -> list[str]:
    """The claimed names from the output backwards: intermediates, then arguments."""
    names = list(claimed)
    return [t for t in reversed(cut.order) if t in names] + [n for n in names if n not in cut.order]


def _tag(eqn: JaxprEqn) -> str | None:
    eqn = _jax.as_checkpoint(eqn)
    return eqn.params["name"] if eqn.primitive.name == "name" else None


def _tags(jaxpr: Jaxpr) -> Iterable[str]:
    for eqn in graphs.equations(jaxpr):
        tag = _tag(eqn)
        if tag is not None and not isinstance(eqn.outvars[0], Literal):
            yield tag


def _wanted(claims: Mapping[str, Any], tags: Sequence[str], flat: Flattening) -> set[str]:
    """The claimed names that are intermediates; the others must be arguments."""
    wanted = {name for name in claims if name in tags}
    for name in claims:
        if name in tags and tags.count(name) > 1:
            raise ValueError(f"two intermediates are called {name!r}; give each its own name")
        if name not in tags:
            try:
                resolve(name, flat.names)
            except ValueError:
                raise ValueError(
                    compose(
                        f"nothing is called {name!r}",
                        got=f"a claim for {name!r}",
                        expected="an intermediate or an argument: "
                        + ", ".join([*tags, *flat.names]),
                        do=f'name the intermediate in the function: bp.name(value, "{name}")',
                    )
                ) from None
    return wanted
