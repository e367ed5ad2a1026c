"""A PyTorch function serves as reference: its values and autograd's cotangents, seen from JAX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from functional_bp.gradcheck.guard import Guard
from functional_bp.gradcheck.subject import Arrays, Flattening, Subject


def read(reference: Callable[..., Any], flat: Flattening, subject: Subject) -> Subject | None:
    """Have ``reference`` judge ``subject`` on tensors; None where it is no PyTorch function."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None

    def tensor(array: Any) -> Any:
        host = np.array(array)
        if host.dtype == jnp.bfloat16:  # NumPy has it from JAX, PyTorch does not read it from there
            return torch.from_numpy(host.astype(np.float32)).to(torch.bfloat16)
        return torch.from_numpy(host)

    def array(tensor: Any) -> np.ndarray:
        tensor = tensor.detach().resolve_conj()
        if tensor.dtype == torch.bfloat16:
            return tensor.float().numpy().astype(jnp.bfloat16)
        return tensor.numpy()

    def tensors(arrays: Any, judged: bool) -> list[Any]:
        return [tensor(a).requires_grad_() if judged else tensor(a) for a in arrays]

    def outputs(actives: list[Any], fixed: list[Any]) -> list[Any]:
        found = jax.tree.leaves(reference(*flat.join(actives, fixed)))
        return [t for t in found if t.is_floating_point() or t.is_complex()]

    def values(actives: Any, fixed: Any) -> list[np.ndarray]:
        with torch.no_grad():
            return [array(t) for t in outputs(tensors(actives, False), tensors(fixed, False))]

    def pulled(actives: Any, fixed: Any, bars: Any) -> list[np.ndarray]:
        inputs = tensors(actives, True)
        outs = outputs(inputs, tensors(fixed, False))
        seeds = [tensor(b).to(o.dtype) for b, o in zip(bars, outs)]
        conjugate = [s.conj() if s.is_complex() else s for s in seeds]
        found = torch.autograd.grad(outs, inputs, conjugate, allow_unused=True)
        kept = [torch.zeros_like(x) if f is None else f for x, f in zip(inputs, found)]
        return [np.conj(array(t)) for t in kept]  # PyTorch's complex gradients are conjugated

    with Guard("the reference on tensors") as ran:
        values(subject.actives, subject.fixed)
    if ran.error is not None:  # it is no PyTorch function of these arguments either
        return None

    def value(actives: Arrays, fixed: Arrays) -> Arrays:
        like = jax.eval_shape(subject.value, actives, fixed)
        return tuple(jax.pure_callback(values, list(like), actives, fixed))

    def pull(actives: Arrays, fixed: Arrays, bars: Arrays) -> tuple[Arrays, Arrays]:
        like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in actives]
        found = jax.pure_callback(pulled, like, actives, fixed, bars)
        return value(actives, fixed), tuple(found)

    return replace(subject, reference=value, reference_pull=pull)
