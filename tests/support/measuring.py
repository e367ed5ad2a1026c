"""The numbers of one case, from few compiled functions: what is claimed, and what is true.

``measure`` compiles two functions per case, because compiling is what such tests cost: the exact
one (JAX's own derivative of the case's reference, called at many points) and the claimed one (all
that ``bp.vjp`` says).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import dtypes

import functional_bp as bp
from functional_bp.engine.rule import Case

# Compiling matters here, running does not: the arrays have a dozen elements.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if jax.__version_info__ < (0, 11):  # twice as quick again; newer ones always fuse kernels so
    QUICK["xla_cpu_use_fusion_emitters"] = False

LOW_DTYPES = ("float32", "bfloat16", "float16")


def inexact(value: Any) -> bool:
    """Whether the value has cotangents."""
    return dtypes.issubdtype(getattr(value, "dtype", np.dtype(bool)), np.inexact)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``jax.jit`` with as little optimisation as XLA allows."""
    return jax.jit(function, compiler_options=QUICK)


def fixing(function: Callable[..., Any], args: Sequence[Any], subset: Sequence[int]) -> Any:
    """The function of the arguments in ``subset`` alone."""

    def partial(*chosen: Any) -> Any:
        given = dict(zip(subset, chosen))
        return function(*[given.get(i, arg) for i, arg in enumerate(args)])

    return partial


def pull(vjp: Any, function: Any, args: Sequence[Any], subset: Sequence[int], only: Any = None):
    """Output leaves, and the pullback from the inexact leaves' cotangents to ``subset``'s."""

    def leaves_of(*chosen: Any) -> list[Any]:
        leaves = jax.tree.leaves(fixing(function, args, subset)(*chosen))
        return leaves if only is None else [[y for y in leaves if inexact(y)][only]]

    out, pullback = vjp(leaves_of, *[args[i] for i in subset])

    def call(bars: Sequence[Any]) -> list[Any]:
        rest = iter(bars)
        full = [next(rest) if inexact(y) else np.zeros(y.shape, dtypes.float0) for y in out]
        found = pullback(full)
        return [bar for i, bar in zip(subset, found) if inexact(args[i])]

    return out, call


def as_scalar(function: Callable[..., Any]) -> Callable[..., Any]:
    """Σ wᵢ (sin Re yᵢ + cos Im yᵢ) over all outputs, no two weights alike."""

    def scalar(*args: Any) -> Any:
        total = jnp.zeros(())
        for y in filter(inexact, jax.tree.leaves(function(*args))):
            weights = 1 + jnp.arange(y.size, dtype=float).reshape(y.shape) / 7
            total += jnp.sum(weights * jnp.sin(jnp.real(y)))
            total += jnp.sum(weights * jnp.cos(jnp.imag(y))) if y.dtype.kind == "c" else 0
        return total

    return scalar


def curvature(grad: Any, function: Any, args: Sequence[Any], active: Sequence[int]) -> list[Any]:
    """The gradient of ‖∇s‖² for a scalar s of the outputs in which no two elements are alike."""
    energy, numbers = as_scalar(fixing(function, args, active)), tuple(range(len(active)))

    def slope(*chosen: Any) -> Any:
        grads = grad(energy, numbers)(*chosen)
        return sum(jnp.sum(jnp.real(x_bar) ** 2 + jnp.imag(x_bar) ** 2) for x_bar in grads)

    return list(grad(slope, numbers)(*[args[i] for i in active]))


def on_device(x: Any) -> Any:
    """An array of JAX. ``jnp.asarray`` of one in NumPy would be a compilation for each shape."""
    return jax.device_put(x) if isinstance(x, np.ndarray) else jnp.asarray(x)


class Probe:
    """One case with its draws: two points, cotangents a and b at the outputs, tangents."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        self.case = case
        self.reference = case.reference or case.function
        self.args = [on_device(x) for x in case.draw(seed)]
        self.other = [on_device(x) for x in case.draw(seed + 1)]
        self.active = [i for i, x in enumerate(self.args) if inexact(x)]
        closed = jax.make_jaxpr(case.function)(*self.args)
        self.out = [v for v in closed.out_avals]
        self.eps = coarsest_eps(closed)
        self.rng = np.random.default_rng(seed + 1000)
        kept = [y for y in self.out if inexact(y)]
        self.a, self.b = ([self.normal(y) for y in kept] for _ in range(2))
        self.tangents = [self.normal(self.args[i]) for i in self.active]

    def normal(self, like: Any) -> Any:
        """Standard normal numbers of the shape and dtype of ``like``."""
        drawn = np.asarray(self.rng.normal(size=like.shape))
        if like.dtype.kind == "c":
            drawn = drawn + 1j * self.rng.normal(size=like.shape)
        return on_device(drawn.astype(like.dtype))

    @property
    def subsets(self) -> list[tuple[int, ...]]:
        """Every single active argument; pairs where there are at most three; all."""
        sizes = {1, len(self.active)} | ({2} if len(self.active) <= 3 else set())
        found = [s for r in sorted(sizes) for s in itertools.combinations(self.active, r)]
        return [s for s in found if s and len(s) < len(self.args)]

    @property
    def everything(self) -> range:
        return range(len(self.args))


def coarsest_eps(closed: Any) -> float:
    """The largest rounding unit of any float dtype in a graph (``preferred_element_type`` …)."""
    found = {np.dtype(np.float64)}
    pattern = {"f32[": np.float32, "c64[": np.float32, "bf16[": jnp.bfloat16, "f16[": np.float16}
    text = str(closed)
    found |= {np.dtype(dtype) for name, dtype in pattern.items() if name in text}
    stated = [2.0 ** -int(bits) for bits in re.findall(r"mantissa_bits=(\d+)", text)]
    return max([float(jnp.finfo(dtype).eps) for dtype in found] + stated)


def exactly(probe: Probe) -> Callable[..., dict[str, Any]]:
    """JAX's value, cotangents and (where it has one) tangents of the case's reference."""

    def exact(args: Any, bars: Any) -> Any:
        out, call = pull(jax.vjp, probe.reference, args, probe.everything)
        return {"value": out, "bars": call(bars)}

    return compiled(exact)


def pushforward(probe: Probe) -> Any:
    """J v by ``jax.jvp``, traced; None where JAX has no forward mode for the reference."""
    chosen = [probe.args[i] for i in probe.active]

    def push(args: Any, tangents: Any) -> Any:
        def leaves_of(*x: Any) -> list[Any]:
            leaves = jax.tree.leaves(fixing(probe.reference, args, probe.active)(*x))
            return [y for y in leaves if inexact(y)]

        return jax.jvp(leaves_of, tuple(args[i] for i in probe.active), tuple(tangents))[1]

    if not chosen or not probe.a:
        return None
    try:
        traced = jax.make_jaxpr(push)(probe.args, probe.tangents)
    except (TypeError, NotImplementedError, ValueError):
        return None
    # JAX 0.12 traces the tangent of a custom_vjp function, and raises when it compiles it.
    return None if " custom_lin[" in str(traced) else push


def measure(case: Case, seed: int = 0, brief: bool = False) -> dict[str, Any]:
    """All numbers of one case in float64: what is claimed, and what is true.

    ``brief``: of value, cotangents and tangents alone.
    """
    probe = Probe(case, seed)
    exact, push = exactly(probe), pushforward(probe)

    def claim(args: Any, other: Any, a: Any, b: Any, tangents: Any) -> dict[str, Any]:
        numbers: dict[str, Any] = {}
        out, call = pull(bp.vjp, case.function, args, probe.everything)
        numbers["value"] = out
        numbers["true value"] = jax.tree.leaves(case.function(*args))
        numbers["a"] = call(a)
        if push is not None:
            numbers["pushed"] = push(args, tangents)
        if brief:
            return numbers
        numbers["b"] = call(b)
        numbers["2a+b"] = call([2 * x + y for x, y in zip(a, b)])
        numbers["subsets"] = [
            pull(bp.vjp, case.function, args, subset)[1](a) for subset in probe.subsets
        ]
        if len(a) > 1:
            numbers["alone"] = [
                pull(bp.vjp, case.function, args, probe.active, only=k)[1]([a[k]])
                for k in range(len(a))
            ]
        if case.batchable:
            numbers["batched"] = jax.vmap(
                lambda args, bars: pull(bp.vjp, case.function, args, probe.everything)[1](bars)
            )(*jax.tree.map(lambda x, y: jnp.stack([x, y]), (args, a), (other, b)))
            numbers["looped"] = pull(bp.vjp, case.function, other, probe.everything)[1](b)
        if case.second_order and probe.active and a:
            numbers["second"] = curvature(bp.grad, case.function, args, probe.active)
            numbers["true second"] = curvature(jax.grad, probe.reference, args, probe.active)
        return numbers

    found = compiled(claim)(probe.args, probe.other, probe.a, probe.b, probe.tangents)
    for name in ("value", "true value"):
        found[name] = [_plain(y) for y in found[name]]
    true = exact(probe.args, probe.a)
    found["reference value"] = [_plain(y) for y in true["value"]]
    found["true"] = true["bars"]
    found = jax.device_get(found)
    return {**found, "probe": probe, "exact": exact}


def _plain(value: Any) -> Any:
    """Typed random keys as the integers that they hold."""
    is_key = jnp.issubdtype(value.dtype, dtypes.prng_key)
    return jax.random.key_data(value) if is_key else value
