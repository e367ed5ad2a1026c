"""What must hold of every rule on every case.

Each entry of ``PROPERTIES`` compares the numbers of ``measuring.measure`` in NumPy and raises an
AssertionError that says which argument of the case is wrong. It returns whether there was anything
to compare; ``comparisons.py`` counts that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measuring import LOW_DTYPES, Probe, compiled, inexact, pull

import functional_bp as bp
from functional_bp.engine.rule import Case


def tolerance(probe: Probe) -> float:
    """How far two right float64 computations may be apart, relative to the largest element.

    2²² rounding units, 1e-9: some hundred roundings in operations whose condition number on the
    cases' small well-behaved arrays is below 1e4. Where the graph itself holds a coarser dtype
    (``preferred_element_type``), 64 of its units, for a dozen roundings.
    """
    return 2.0**22 * probe.eps if probe.eps < 1e-12 else 64 * probe.eps


def close(got: Any, want: Any, rtol: float, what: str, size: float = 0.0) -> None:
    """Equal to ``rtol`` of the largest finite element of ``want``; nan and inf in equal places.

    ``size`` is that of terms which may cancel in ``want``.
    """
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, not {want.shape}"
    assert got.dtype == want.dtype, f"{what}: dtype {got.dtype}, not {want.dtype}"
    if got.dtype.kind not in "fc" and not inexact(got):
        np.testing.assert_array_equal(got, want, err_msg=what)
        return False
    finite = np.abs(want[np.isfinite(want)]).astype(float)
    scale = float(finite.max(initial=size))
    np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * scale + 1e-300, err_msg=what)


def _each(got: Sequence[Any], want: Sequence[Any], probe: Probe, what: str, rtol: float) -> None:
    assert len(got) == len(want), f"{what}: {len(got)} cotangents, not {len(want)}"
    for i, (x, y) in enumerate(zip(got, want)):
        close(x, y, rtol, f"{what}, argument {probe.active[i] if len(probe.active) > i else i}")


def value(numbers: dict[str, Any]) -> bool:
    """bp.vjp returns what the function returns, and the reference has the same value."""
    probe = numbers["probe"]
    for k, (got, want) in enumerate(zip(numbers["value"], numbers["true value"], strict=True)):
        close(got, want, tolerance(probe), f"output {k}")
    # A reference is a formula of its own: where an output is exactly zero, its terms, of the size
    # of the other outputs, may cancel to rounding only (I − U Uᵀ of a complete basis).
    sizes = [np.abs(y[np.isfinite(y)]).max(initial=0.0) for y in numbers["true value"]]
    pairs = zip(numbers["reference value"], numbers["true value"])
    for k, (got, want) in enumerate(pairs):
        rtol, size = max(tolerance(probe), 1e-7), float(max(sizes))
        close(np.asarray(got, want.dtype), want, rtol, f"reference {k}", size=size)
    return bool(numbers["value"])


def cotangent(numbers: dict[str, Any]) -> bool:
    """x̄ = Jᵀ ȳ equals jax.vjp's of the reference, in the argument's shape and dtype."""
    probe = numbers["probe"]
    for i, (bar, index) in enumerate(zip(numbers["a"], probe.active, strict=True)):
        x = probe.args[index]
        assert bar.shape == x.shape and bar.dtype == x.dtype, (
            f"argument {i}: cotangent {bar.dtype}{bar.shape} for {x.dtype}{x.shape}"
        )
    _each(numbers["a"], numbers["true"], probe, "cotangent", tolerance(probe))
    return bool(probe.active)


def adjoint(numbers: dict[str, Any]) -> bool:
    """⟨J v, ȳ⟩ = ⟨v, Jᵀ ȳ⟩ with J v from jax.jvp (products unconjugated, as JAX's convention)."""
    if "pushed" not in numbers:
        return False
    probe = numbers["probe"]
    product = lambda x, y: np.asarray(x, np.complex128) * np.asarray(y, np.complex128)
    left = [product(x, y) for x, y in zip(numbers["pushed"], probe.a, strict=True)]
    right = [product(x, y) for x, y in zip(probe.tangents, numbers["a"], strict=True)]
    scale = sum(np.abs(z[np.isfinite(z)]).sum() for z in left + right)
    difference = sum(np.real(z).sum() for z in left) - sum(np.real(z).sum() for z in right)
    if not np.isfinite(difference):
        return False
    assert abs(difference) <= tolerance(probe) * scale, f"⟨Jv,ȳ⟩ − ⟨v,Jᵀȳ⟩ = {difference}"
    return True


def subsets(numbers: dict[str, Any]) -> bool:
    """Every subset of active arguments gives the cotangents that all together give."""
    probe = numbers["probe"]
    position = {index: k for k, index in enumerate(probe.active)}
    for subset, bars in zip(probe.subsets, numbers["subsets"], strict=True):
        want = [numbers["true"][position[i]] for i in subset]
        _each(bars, want, probe, f"active arguments {subset}", tolerance(probe))
    return bool(probe.subsets)


def alone(numbers: dict[str, Any]) -> bool:
    """The cotangents from each output alone add up to those from all outputs."""
    if "alone" not in numbers:
        return False
    probe = numbers["probe"]
    summed = [np.sum(np.stack(parts), 0) for parts in zip(*numbers["alone"])]
    # Parts may cancel, so the bound is of the parts' size: one more factor of 2⁶.
    scale = [np.abs(np.stack(parts)).max(initial=0.0) for parts in zip(*numbers["alone"])]
    for i, (got, want, size) in enumerate(zip(summed, numbers["true"], scale)):
        np.testing.assert_allclose(
            got, want, rtol=64 * tolerance(probe), atol=64 * tolerance(probe) * size,
            err_msg=f"sum over outputs alone, argument {probe.active[i]}",
        )  # fmt: skip
    return bool(summed)


def batched(numbers: dict[str, Any]) -> bool:
    """vmap of the pullback equals a loop over two draws of arguments and cotangents."""
    if "batched" not in numbers:
        return False
    probe = numbers["probe"]
    first = [x[0] for x in numbers["batched"]]
    second = [x[1] for x in numbers["batched"]]
    _each(first, numbers["a"], probe, "vmap, first", tolerance(probe))
    _each(second, numbers["looped"], probe, "vmap, second", tolerance(probe))
    return bool(first)


def linear(numbers: dict[str, Any]) -> bool:
    """Jᵀ(2a + b) = 2 Jᵀa + Jᵀb."""
    probe = numbers["probe"]
    for i, (got, a, b) in enumerate(zip(numbers["2a+b"], numbers["a"], numbers["b"])):
        want = 2 * a + b
        size = np.abs(np.stack([2 * a, b])).astype(float)
        size = size[np.isfinite(size)].max(initial=0.0)
        np.testing.assert_allclose(
            got, want, rtol=tolerance(probe), atol=tolerance(probe) * size + 1e-300,
            err_msg=f"linearity, argument {probe.active[i]}",
        )  # fmt: skip
    return bool(numbers["a"])


def second_order(numbers: dict[str, Any]) -> bool:
    """∇‖∇s‖² by bp.grad of bp.grad equals jax.grad of jax.grad."""
    if "second" not in numbers:
        return False
    probe = numbers["probe"]
    # Two derivatives lose the square of what one loses: 2⁸ further units. Where the second
    # derivative is zero (sin of asin), terms of the size of the first cancel.
    pairs = zip(numbers["second"], numbers["true second"], numbers["true"], strict=True)
    for i, (got, want, first) in enumerate(pairs):
        size = np.abs(first[np.isfinite(first)]).max(initial=0.0)
        what = f"second order, argument {probe.active[i]}"
        close(got, want, 256 * tolerance(probe), what, size=float(size))
    return bool(numbers["second"])


def low_precision(numbers: dict[str, Any]) -> bool:
    """In float32, bfloat16 and float16 the error is that of a stable computation.

    x̄ in the low precision is compared with x̄ in float64 at the same rounded inputs. Allowed is
    what a backward-stable computation does: the exact answer for data changed by some rounding
    units (8 × the response to one unit on every input and cotangent, in three random directions)
    and 8 roundings of the result. Where an operation cannot do that, twice the error of JAX's own
    gradient in that dtype.
    """
    probe, case = numbers["probe"], numbers["probe"].case
    if not probe.active or not probe.a:
        return False
    names = [d for d in LOW_DTYPES if d == "float32" or (case.half and not _has_complex(probe))]
    rounded = {name: [_cast(x, name) for x in probe.args] for name in names}
    if not case.half and not _traceable(case, rounded["float32"]):
        return False
    bars: dict[str, Any] = {}
    for name in names:
        out = [y for y in jax.tree.leaves(jax.eval_shape(case.function, *rounded[name]))]
        kept = [y for y in out if inexact(y)]
        bars[name] = [np.asarray(a).astype(y.dtype) for a, y in zip(probe.a, kept, strict=True)]

    def claim(vjp: Any, function: Any) -> Callable[..., Any]:
        return lambda rounded, bars: {
            name: pull(vjp, function, rounded[name], probe.everything)[1](bars[name])
            for name in names
        }

    found = jax.device_get(compiled(claim(bp.vjp, case.function))(rounded, bars))
    faults = []
    for name in names:
        eps = max(float(jnp.finfo(name).eps), probe.eps)
        args = [_cast(x, "float64") for x in rounded[name]]
        given = [y.astype(a.dtype) for y, a in zip(bars[name], probe.a)]
        true = jax.device_get(numbers["exact"](args, given)["bars"])
        responses = [np.zeros(x.shape) for x in true]
        for _ in range(3):
            shaken = ([_shake(x, eps, probe.rng) for x in group] for group in (args, given))
            moved = jax.device_get(numbers["exact"](*shaken)["bars"])
            responses = [np.maximum(r, np.abs(m - t)) for r, m, t in zip(responses, moved, true)]
        for i, (got, want, response) in enumerate(zip(found[name], true, responses)):
            error, allowed = _error_and_bound(got, want, response, eps, name)
            if not error <= allowed:
                faults.append((name, i, error, allowed, want))
    if faults:
        own = jax.device_get(compiled(claim(jax.vjp, probe.reference))(rounded, bars))
        for name, i, error, allowed, want in faults:
            theirs, _ = _error_and_bound(own[name][i], want, np.zeros(want.shape), 0.0, name)
            assert error <= 2 * theirs or np.isnan(theirs), (
                f"{name}, argument {probe.active[i]}: error {error:.3g}, allowed {allowed:.3g}, "
                f"JAX's own {theirs:.3g}"
            )
    return bool(names)


def _error_and_bound(got: Any, want: Any, response: Any, eps: float, name: str) -> Any:
    wide = np.complex128 if want.dtype.kind == "c" else np.float64
    finite = np.isfinite(want) & np.isfinite(response)
    differences = np.abs(got.astype(wide) - want)[finite]
    if np.isnan(differences).any():
        return np.nan, 0.0
    size = np.abs(want[finite]).max(initial=0.0)
    tiny = float(jnp.finfo(name).tiny)
    allowed = 8 * response[finite].max(initial=0.0) + 8 * eps * size + 8 * tiny
    return differences.max(initial=0.0), allowed


def _traceable(case: Case, args: Sequence[Any]) -> bool:
    try:
        jax.eval_shape(case.function, *args)
    except (TypeError, ValueError, NotImplementedError):
        return False
    return True


def _has_complex(probe: Probe) -> bool:
    return any(x.dtype.kind == "c" for x in (*probe.args, *probe.out))


def _cast(x: Any, name: str) -> Any:
    """In NumPy, like ``_shake``: in JAX each shape would be a compilation."""
    if not inexact(x):
        return x
    dtype = np.result_type(name, np.complex64) if x.dtype.kind == "c" else jnp.dtype(name)
    return np.asarray(x).astype(dtype)


def _shake(x: Any, eps: float, rng: np.random.Generator) -> Any:
    if not inexact(x):
        return x
    return (np.asarray(x) * (1 + eps * rng.choice([-1.0, 1.0], x.shape))).astype(x.dtype)


PROPERTIES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "value": value,
    "cotangent": cotangent,
    "adjoint identity": adjoint,
    "every subset of active arguments": subsets,
    "every output alone": alone,
    "vmap against a loop": batched,
    "linear in the cotangent": linear,
    "second order": second_order,
    "low precision": low_precision,
}
