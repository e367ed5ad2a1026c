"""The other checkers: each says whether it takes a gradient to be wrong.

A checker gets ``(function, args, reference)`` and returns True if it objects. That it raises
anything else than an objection counts as one: on a wrong gradient as found, on a right one as
accused. All of them look at the given arguments alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

Objects = Callable[[Callable[..., Any], Sequence[Any], Callable[..., Any]], bool]

WIDER = {"f": np.float64, "c": np.complex128}
RTOL = 1e-4  # of the comparison with ``jax.vjp``, as tests in float32 have it
ATOL = 1e-6


def rivals() -> dict[str, Objects | None]:
    """The other checkers by name; None for one that is not installed."""
    return {
        "check_grads 1 float32": _check_grads(order=1, wide=False),
        "check_grads 2 float32": _check_grads(order=2, wide=False),
        "check_grads 1 float64": _check_grads(order=1, wide=True),
        "check_grads 2 float64": _check_grads(order=2, wide=True),
        "chex float32": _chex if importlib.util.find_spec("chex") else None,
        "jax.vjp float32": compare_with_vjp,
        "torch gradcheck": _torch_gradcheck if importlib.util.find_spec("torch") else None,
    }


def only_actives(function: Callable[..., Any], args: Sequence[Any]) -> tuple[Any, list[Any]]:
    """The function of its real and complex arguments alone, and those arguments.

    The function returns the real and complex leaves of its output, alone or as a list.
    """
    leaves, tree = jax.tree.flatten(tuple(args))
    places = [i for i, leaf in enumerate(leaves) if is_active(leaf)]

    def of_actives(*actives: Any) -> Any:
        filled = list(leaves)
        for place, active in zip(places, actives):
            filled[place] = active
        outs = jax.tree.leaves(function(*jax.tree.unflatten(tree, filled)))
        kept = [out for out in outs if is_active(out)]
        return kept[0] if len(kept) == 1 else kept

    return of_actives, [leaves[i] for i in places]


def is_active(leaf: Any) -> bool:
    """Whether a leaf is real or complex."""
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))


def widened(args: Any) -> Any:
    """The arguments with their real leaves in float64, their complex ones in complex128."""

    def wide(leaf: Any) -> Any:
        if not is_active(leaf):
            return leaf
        is_complex = jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating)
        return jnp.asarray(np.asarray(leaf), WIDER["c" if is_complex else "f"])

    return jax.tree.map(wide, args)


def _check_grads(order: int, wide: bool) -> Objects:
    def objects(function: Any, args: Sequence[Any], reference: Any) -> bool:
        with jax.enable_x64(wide):
            of_actives, actives = only_actives(function, widened(args) if wide else args)
            try:
                check_grads(of_actives, tuple(actives), order=order, modes=["rev"])
            except AssertionError:
                return True
        return False

    return objects


def _chex(function: Any, args: Sequence[Any], reference: Any) -> bool:
    import chex

    with jax.enable_x64(False):
        of_actives, actives = only_actives(function, args)
        try:
            chex.assert_numerical_grads(of_actives, tuple(actives), order=1, modes=["rev"])
        except AssertionError:
            return True
    return False


def compare_with_vjp(
    function: Any,
    args: Sequence[Any],
    reference: Any,
    *,
    rtol: float = RTOL,
    atol: float = ATOL,
) -> bool:
    """Whether the cotangents differ from the reference's, for one random cotangent, in float32."""
    with jax.enable_x64(False):
        claimed = cotangents(function, args)
        true = cotangents(reference, args)
    return not all(
        a.dtype == b.dtype and np.allclose(_float(a), _float(b), rtol=rtol, atol=atol)
        for a, b in zip(claimed, true, strict=True)
    )


def cotangents(function: Any, args: Sequence[Any], seed: int = 0) -> list[Any]:
    """The cotangents of the active arguments for a normally distributed output cotangent."""
    of_actives, actives = only_actives(function, args)
    outs, pullback = jax.vjp(of_actives, *actives)
    return list(pullback(random_like(outs, seed)))


def random_like(outs: Any, seed: int) -> Any:
    """Normally distributed arrays of the outputs' shapes and dtypes.

    Their stream is another than the arguments': a cotangent equal to its argument hides faults.
    """
    rng = np.random.default_rng([seed, 1])

    def draw(out: Any) -> Any:
        drawn = rng.standard_normal(np.shape(out))
        if jnp.issubdtype(out.dtype, jnp.complexfloating):
            drawn = drawn + 1j * rng.standard_normal(np.shape(out))
        return jnp.asarray(drawn, out.dtype)

    return jax.tree.map(draw, outs)


def _float(array: Any) -> np.ndarray:
    array = jnp.asarray(array)
    return np.asarray(array if array.dtype.itemsize > 2 else array.astype(jnp.float32))


def _torch_gradcheck(function: Any, args: Sequence[Any], reference: Any) -> bool:
    """PyTorch's gradcheck in float64, JAX's function and pullback inside an autograd.Function."""
    import torch  # pyright: ignore[reportMissingImports]

    with jax.enable_x64(True):
        of_actives, actives = only_actives(function, widened(args))
        as_jax = lambda tensors: [jnp.asarray(t.detach().numpy()) for t in tensors]
        as_torch = lambda array: torch.from_numpy(np.array(array))

        class Bridge(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *tensors: Any) -> Any:
                ctx.save_for_backward(*tensors)
                outs = of_actives(*as_jax(tensors))
                return jax.tree.map(as_torch, tuple(outs) if isinstance(outs, list) else outs)

            @staticmethod
            def backward(ctx: Any, *bars: Any) -> Any:
                outs, pullback = jax.vjp(of_actives, *as_jax(ctx.saved_tensors))
                flat = [jnp.asarray(bar.resolve_conj().numpy()) for bar in bars]
                claimed = pullback(flat if isinstance(outs, list) else flat[0])
                return tuple(map(as_torch, claimed))

        inputs = tuple(as_torch(x).requires_grad_() for x in actives)
        try:
            torch.autograd.gradcheck(Bridge.apply, inputs)
        except torch.autograd.gradcheck.GradcheckError:
            return True
    return False
