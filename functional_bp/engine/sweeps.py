"""The forward sweep keeps what the plan says; the reverse one goes from output to input cotangents.

Everything here is pure JAX on values that may be tracers, so that the sweeps compose with ``jit``,
``vmap``, ``scan``, ``shard_map``, each other, and JAX's own transforms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import dtypes, lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal
from jax.sharding import AxisType, use_abstract_mesh

from functional_bp import _jax
from functional_bp.engine.higher_order import has_tangent
from functional_bp.engine.plan import Auxiliary, Plan, Pull, SweepStep
from functional_bp.engine.rule import Need
from functional_bp.errors import RuleError, compose, describe

Residuals = tuple[list[Any], list[Any]]  # the plan's kept values; those of each higher-order rule


def evaluate(eqn: JaxprEqn, operands: Sequence[Any]) -> Sequence[Any]:
    """Run one equation, and return a list of outputs always."""
    with _jax.emitting(eqn), eqn.ctx.manager:
        try:
            out = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
        except ValueError:  # a graph traced outside a mesh, run inside: its constants do not vary
            axes = [_jax.varying_axes(jax.typeof(x)) for x in operands]
            if len(set(axes)) < 2:
                raise
            operands = [vary(x, frozenset[str]().union(*axes)) for x in operands]
            out = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def run(
    jaxpr: Jaxpr,
    consts: Sequence[Any],
    args: Sequence[Any],
    step: Callable[[JaxprEqn, Sequence[Any]], Sequence[Any]] = evaluate,
) -> list[Any]:
    """Return the outputs of a graph, each equation run by ``step``."""
    env: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args)))
    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, step(eqn, [value_of(a, env) for a in eqn.invars])))
    return [value_of(v, env) for v in jaxpr.outvars]


def of_chosen(
    function: Callable[[Sequence[Any]], Any], operands: Sequence[Any], on: Sequence[bool]
) -> Callable[..., list[Any]]:
    """Make a function of all operands one of those that ``on`` marks."""

    def call(*chosen: Any) -> list[Any]:
        remaining = iter(chosen)
        return list(function([next(remaining) if o else x for x, o in zip(operands, on)]))

    return call


def value_of(atom: Any, values: Mapping[Any, Any]) -> Any:
    """Return an operand's value, always an array: a literal's, where JAX has a Python number."""
    if not isinstance(atom, Literal):
        return values[atom]
    return atom.val if hasattr(atom.val, "shape") else _jax.number_as_array(atom.val, atom.aval)


def forward(
    plan: Plan,
    consts: Sequence[Any],
    args: Sequence[Any],
    given: Mapping[Any, Any] | None = None,
    tie: Callable[[Any], Any] | None = None,
) -> tuple[list[Any], Residuals]:
    """Run the forward sweep: return the outputs (None where not needed), and what was kept.

    Args:
        plan: for both sweeps.
        consts: the values of the graph's constants.
        args: its inputs.
        given: values of variables that the plan was told are there.
        tie: of a sweep that runs again; every operation gets an operand that passed through it, or
            depends on one that did (``tied_to``).
    """
    jaxpr = plan.jaxpr
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts))
    env.update(zip(jaxpr.invars, args))
    env.update(given or {})
    inner_residuals: list[Any] = []
    tied: set[Any] = set()
    for eqn in plan.live:
        operands = [value_of(a, env) for a in eqn.invars]
        if tie is not None:
            needs = tied.isdisjoint(a for a in eqn.invars if not isinstance(a, Literal))
            before, operands = operands, tie_smallest(eqn, operands, tie) if needs else operands
            if not needs or operands is not before:
                tied.update(eqn.outvars)
        step = plan.augmented.get(eqn)
        if step is None:
            outs = evaluate(eqn, operands)
        elif step.higher_order is not None:
            with _jax.emitting(eqn), eqn.ctx.manager:
                outs, residuals = step.higher_order.forward(*operands)
            inner_residuals.append(residuals)
        else:
            outs = forward_with_auxiliaries(step, operands, env)
        env.update(zip(eqn.outvars, outs))
        for var in plan.last_uses[eqn]:
            env.pop(var, None)
    kept = [env[v] for v in plan.keep]
    outs = [value_of(v, env) if isinstance(v, Literal) else env.get(v) for v in jaxpr.outvars]
    return outs, (kept, inner_residuals)


def tie_smallest(
    eqn: JaxprEqn, operands: Sequence[Any], tie: Callable[[Any], Any]
) -> Sequence[Any]:
    """Return the operands, the smallest array that can be, if one can, passed through ``tie``."""
    arrays = [i for i, a in enumerate(eqn.invars) if hasattr(a.aval, "dtype")]
    size: Any = lambda i: eqn.invars[i].aval.size
    for i in sorted(arrays, key=size):
        tied = tie(operands[i])
        if tied is not operands[i]:
            return [*operands[:i], tied, *operands[i + 1 :]]
    return operands


def can_be_tied(values: Any) -> bool:
    """Say whether one entry of these may decide on others: not where shardings are explicit."""
    types: list[Any] = list(map(jax.typeof, jax.tree.leaves(values)))
    shardings = filter(None, (getattr(t, "sharding", None) for t in types))
    return not any(AxisType.Explicit in s.mesh.axis_types for s in shardings)


def tied_to(bars: Sequence[Any]) -> Callable[[Any], Any]:
    """Make the identity wait for a cotangent, so that what is computed again is so only then.

    A compiler would else find that it is equal to what was computed before, and keep that. An
    optimization barrier forbids it; where XLA drops barriers (``_jax.DROPS_BARRIERS``), this does:
    x̂ = x where b, else 0, with a truth b that reads the bits of a cotangent's first entry and is
    always true, min(bits | 1, 1) ≠ 0. No compiler sees through it. The minimum is found by sorting,
    which is not fused with what reads it: else the whole cotangent would stay for its sake.

    Inside ``shard_map``, what does not vary over the axes of a mesh over which the cotangent does
    stays as it is.
    """
    axes_of = lambda x: _jax.varying_axes(jax.typeof(x))
    given = [bar for bar in bars if bar is not None and bar.size]
    if not given:
        return lambda x: x
    bar = min(given, key=lambda bar: len(axes_of(bar)))
    first = lax.reshape(lax.slice(bar, (0,) * bar.ndim, (1,) * bar.ndim), ())
    first = lax.real(first) if jnp.iscomplexobj(first) else first
    bits = lax.bitcast_convert_type(first, f"uint{8 * first.dtype.itemsize}")
    one = jnp.ones_like(bits)
    least = lax.sort(jnp.stack([lax.bitwise_or(bits, one), one]))[0]
    truth = lax.ne(least, jnp.zeros_like(bits))

    def tie(x: Any) -> Any:
        if jnp.issubdtype(x.dtype, dtypes.prng_key):
            bits = tie(jax.random.key_data(x))
            return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(x))
        axes = axes_of(x)
        if not axes_of(bar) <= axes:
            return x
        return lax.select(vary(truth, axes), x, jnp.zeros_like(x))

    return tie


def forward_with_auxiliaries(
    step: SweepStep, operands: Sequence[Any], env: dict[Any, Any]
) -> Sequence[Any]:
    """Run an equation by its rule's own ``forward``; what that computes beside goes to ``env``."""
    rule, eqn = step.rule, step.eqn
    assert rule is not None and rule.forward is not None
    with _jax.emitting(eqn), eqn.ctx.manager:
        outs, extra = rule.forward(*operands, **eqn.params)
    extra = extra if isinstance(extra, tuple) else (extra,)
    env.update((Auxiliary(eqn, n), value) for n, value in zip(rule.auxiliaries, extra, strict=True))
    return outs if eqn.primitive.multiple_results else [outs]


def kept_values(plan: Plan, kept: Sequence[Any]) -> dict[Any, Any]:
    """Return what the rules name, by variable or auxiliary: what was kept, and what is made of
    that.
    """
    have: dict[Any, Any] = dict(zip(plan.keep, kept))
    for eqn in plan.again:
        operands = [value_of(a, have) for a in eqn.invars]
        have.update(zip(eqn.outvars, evaluate(eqn, operands)))
    return have


class Record(NamedTuple):
    """A record has what a reverse sweep found on its way, for those who want to see it.

    Attributes:
        bars: the cotangent of each variable that has one.
        shares: what each use of a variable added to its cotangent, by equation and operand.
    """

    bars: dict[Any, Any]
    shares: dict[tuple[JaxprEqn, int], Any]


def reverse(
    plan: Plan, residuals: Residuals, cotangents: Sequence[Any], record: Record | None = None
) -> list[Any]:
    """Run the reverse sweep: return a cotangent per input of the graph, None where zero or not
    wanted.

    Args:
        plan: the plan that ``forward`` ran with.
        residuals: what ``forward`` returned.
        cotangents: one per output, None where zero.
        record: is filled with what the sweep finds.
    """
    with _jax.transposing():
        return _reverse(plan, residuals, cotangents, record)


def _reverse(
    plan: Plan, residuals: Residuals, cotangents: Sequence[Any], record: Record | None
) -> list[Any]:
    jaxpr = plan.jaxpr
    kept, inner_residuals = residuals
    have = kept_values(plan, kept)
    bars: dict[Any, Any] = {}
    for var, bar, on in zip(jaxpr.outvars, cotangents, plan.out_active):
        if on and bar is not None:
            accumulate(bars, var, match_axes(bar, var.aval))
    remaining = len(inner_residuals)
    for step in reversed(plan.steps):
        eqn = step.eqn
        out_bars = [bars.pop(v, None) for v in eqn.outvars]
        if record is not None:
            found = zip(eqn.outvars, out_bars)
            record.bars.update((v, bar) for v, bar in found if bar is not None)
        if step.higher_order is not None:
            remaining -= 1
        if all(bar is None for bar in out_bars):
            continue
        with _jax.emitting(eqn), eqn.ctx.manager:
            if step.higher_order is not None:
                found = step.higher_order.reverse(inner_residuals[remaining], out_bars)
                pairs = zip(range(len(eqn.invars)), found, strict=True)
            else:
                pairs = (
                    p for pull in reversed(step.pulls) for p in call(step, pull, out_bars, have)
                )
            for i, bar in pairs:
                atom = eqn.invars[i]
                if bar is not None and not isinstance(atom, Literal) and has_tangent(atom.aval):
                    share = fit(bar, atom.aval, step)
                    accumulate(bars, atom, share)
                    if record is not None:
                        record.shares[eqn, i] = share
    if record is not None:
        record.bars.update(bars)
    return [bars.get(v) if on else None for v, on in zip(jaxpr.invars, plan.reached)]


def call(
    step: SweepStep, pull: Pull, out_bars: Sequence[Any], have: dict[Any, Any]
) -> list[tuple[int, Any]]:
    """Call one pullback, and return pairs of operand position and cotangent."""
    if all(out_bars[i] is None for i in pull.named("cotangent")):
        return []

    def given(need: Need) -> Any:
        source = pull.sources[need]
        if need.kind == "value":
            is_list = isinstance(source, list)
            return [value_of(a, have) for a in source] if is_list else value_of(source, have)
        if need.kind != "cotangent":
            return source
        if isinstance(source, list):
            return [out_bars[i] for i in source]
        bar = out_bars[source]
        is_absent = bar is None and not need.optional
        return zeros(step.eqn.outvars[source].aval) if is_absent else bar

    bar = pull.pullback(given, pull.parameters)
    if step.rule is not None and step.rule.joint is not None:
        return _from_joint(step, pull, bar)
    return [(pull.operands[0], bar)]


def _from_joint(step: SweepStep, pull: Pull, bars: Any) -> list[tuple[int, Any]]:
    assert step.rule is not None
    if not isinstance(bars, dict) or not set(bars) <= {n.text for n in step.rule.operands}:
        raise RuleError(
            compose(
                f"the joint rule of {step.eqn.primitive.name!r} returned the wrong number or names",
                got=str(sorted(bars)) if isinstance(bars, dict) else type(bars).__name__,
                expected=f"a dict with cotangents for {', '.join(dict.fromkeys(pull.names))}",
            )
        )
    return [(i, bars.get(name)) for i, name in zip(pull.operands, pull.names)]


def zeros(aval: Any) -> Any:
    """Make zeros as a cotangent of a value: in its sharding, varying over the same mesh axes."""
    return match_axes(match_sharding(lax.full(aval.shape, 0, aval.dtype), aval), aval)


def or_zeros(bars: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """Return the cotangents (or tangents) of the variables, with zeros where they are absent."""
    return [zeros(v.aval) if bar is None else bar for bar, v in zip(bars, variables)]


def match_sharding(array: Any, aval: Any) -> Any:
    """Put ``array`` in the sharding of a cotangent of ``aval``, where shardings are explicit."""
    sharding = getattr(aval, "sharding", None)
    if sharding is None or AxisType.Explicit not in sharding.mesh.axis_types:
        return array
    target = sharding.update(spec=_jax.cotangent_spec(sharding.spec))
    if jax.typeof(array).sharding == target:
        return array
    with use_abstract_mesh(target.mesh):
        return jax.reshard(array, target)


def match_axes(array: Any, aval: Any) -> Any:
    """Make ``array`` vary over the manual mesh axes that ``aval`` varies over."""
    return vary(array, _jax.varying_axes(aval))


def vary(array: Any, axes: frozenset[str]) -> Any:
    """Make ``array`` vary over the manual mesh axes ``axes`` at least."""
    missing = axes - _jax.varying_axes(jax.typeof(array)) if axes else axes
    return lax.pcast(array, tuple(missing), to="varying") if missing else array


def accumulate(bars: dict[Any, Any], var: Any, bar: Any) -> None:
    """Sum over the uses of a variable (the multivariate chain rule)."""
    before = bars.get(var)
    bars[var] = bar if before is None else lax.add(before, bar)


def fit(bar: Any, aval: Any, step: SweepStep) -> Any:
    """Make a rule's result a cotangent of ``aval``: un-broadcast, in its dtype.

    Raises:
        RuleError: it is not an array, or its shape or dtype cannot be that of a cotangent.
    """
    if not hasattr(bar, "shape") or not hasattr(bar, "dtype"):
        raise _misfit(bar, aval, step, "something that is not an array")
    if bar.dtype != aval.dtype:
        if not has_tangent(bar) or (bar.dtype.kind == "c") != (aval.dtype.kind == "c"):
            raise _misfit(bar, aval, step, "the wrong dtype")
        bar = lax.convert_element_type(bar, aval.dtype)
    if bar.shape != aval.shape:
        summed = unbroadcast(bar, aval.shape)
        if summed is None:
            raise _misfit(bar, aval, step, "the wrong shape")
        bar = summed
    return match_axes(match_sharding(bar, aval), aval)


def unbroadcast(bar: Any, shape: tuple[int, ...]) -> Any:
    """Sum over the axes that broadcasting ``shape`` to ``bar.shape`` added or repeated.

    The adjoint of z = broadcast(x) is x̄ = Σ z̄ over the copies. None if ``shape`` does not
    broadcast to ``bar.shape``.
    """
    lead = bar.ndim - len(shape)
    if lead < 0 or any(n not in (1, m) for n, m in zip(shape, bar.shape[lead:])):
        return None
    repeated = [lead + i for i, n in enumerate(shape) if n == 1 and bar.shape[lead + i] != 1]
    axes = (*range(lead), *repeated)
    summed = lax.reduce_sum(bar, axes) if axes else bar
    return lax.reshape(summed, shape)


def _misfit(bar: Any, aval: Any, step: SweepStep, what: str) -> RuleError:
    rule, name = step.rule, step.eqn.primitive.name
    at = f"{rule.file}:{rule.line}" if rule is not None else ""
    return RuleError(
        compose(
            f"the rule of {name!r} returned {what}",
            where=at,
            got=describe(bar),
            expected=f"{describe(aval)}, as the operand that the cotangent is for",
            do="mend the pullback; the engine sums over broadcast axes by itself",
        )
    )
