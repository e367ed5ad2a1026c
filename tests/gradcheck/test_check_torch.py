"""PyTorch functions as references: their values and autograd's cotangents, seen from JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_bp.gradcheck.check import check

torch = pytest.importorskip("torch", reason="PyTorch is gigabytes, and only a reference here")

X = np.array([[0.5, -1.5, 2.0], [1.0, 0.25, -0.75]], np.float32)


def custom(function: Any, bar: Any) -> Any:
    made = jax.custom_vjp(function)
    made.defvjp(lambda x: (function(x), x), lambda x, y_bar: (bar(x, y_bar),))
    return made


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_real(factor: float) -> None:
    tanh = custom(jnp.tanh, lambda x, y_bar: factor * y_bar * (1 - jnp.tanh(x) ** 2))
    report = check(tanh, X, reference=torch.tanh)
    assert report.ok == (factor == 1.0)
    outcome = {row.checked: row.outcome for row in report.rows}
    assert factor != 1.0 or outcome["bfloat16 against float64"] == "right"


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_complex(factor: float) -> None:
    cube = lambda z: z * z.conj() * z
    made = custom(cube, lambda z, bar: factor * jax.vjp(cube, z)[1](bar)[0])
    z = (X + 1j * X[::-1]).astype(np.complex64)
    assert check(made, z, reference=lambda z: z * torch.conj(z) * z, quick=True).ok == (factor == 1)
