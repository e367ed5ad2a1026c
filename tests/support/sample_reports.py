"""Reports made by hand, for the tests of their formats and of the commands that print them."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np

from functional_bp.gradcheck.findings import Finding, Place, Repair, Row, WrongEntry
from functional_bp.gradcheck.report import Report

LINE_TEXT = "x_bar = r * (a - a.mean(-1, keepdims=True))"
LINE = Place("mypackage/ops.py", 19, LINE_TEXT)

MISSING_TERM = Finding(
    kind="missing term",
    message="the path through the variance was dropped",
    argument="x",
    where=LINE,
    repair=Repair(
        "subtract x̂ times the mean of x̂ · a",
        LINE,
        "a - a.mean(-1, keepdims=True)",
        "a - a.mean(-1, keepdims=True) - x_hat * (x_hat * a).mean(-1, keepdims=True)",
    ),
    explanations=("missing: − r · x̂ · mean(x̂ · ȳ · γ)", "the true backward without rsqrt is yours"),
    relative_error=0.5312,
    wrong_entries=12,
    size=12,
    entries=(WrongEntry((1, 2), -3.113791, -0.279384), WrongEntry((1, 0), 6.255032, 5.369593)),
    example={
        "x": np.array([[1.0, 2.0, 0.1]], np.float32),
        "params['scale']": np.array([0.5, -1.25], ml_dtypes.bfloat16),
    },
)

REGION = Finding(
    kind="region",
    message="wrong where x < −3.00, 11 of 8192 that were tried",
    argument="params['bias']",
    stage="second order",
    inputs="large",
    relative_error=float("inf"),
    wrong_entries=1,
    size=1,
    entries=(WrongEntry((), complex(float("nan"), 2.0), 1 - 3j),),
    where=Place("mypackage/ops.py", 23, "return jnp.where(x < -3, 0, bias_bar)"),
)

WRONG = Report(
    name="mypackage.ops:layer_norm",
    verdict="wrong",
    findings=(MISSING_TERM, REGION),
    rows=(
        Row("value", "right", 0.0, 1e-12, "the reference"),
        Row("cotangent of x", "wrong", 0.53, 1e-6, "jax.vjp and finite differences"),
        Row("cotangent of scale", "right", 2.1e-11, 1e-6, "jax.vjp and finite differences"),
        Row("number, shapes and dtypes of cotangents", "right", against="the arguments"),
        Row("jit", "right", 5.9e-8, 2e-3, "the reference's VJP and finite differences, and more"),
        Row("vmap", "unresolved", against="took longer than 20 s"),
        Row("sharding", "left out", against="one device only"),
        Row("kink at 0", "note", against="a valid subgradient"),
    ),
    notes=("at x = 0 the claim is 1, JAX's convention is 0: both are subgradients",),
    seconds=3.14,
    settings={
        "seed": "0",
        "backend": "cpu",
        "precision": "float64",
        "jax": "0.10.2",
        "reference": "its own primal",
        "rerun": "functional-bp check mypackage.ops:layer_norm --shape x=f32[3,4] --seed 0",
    },
)

RIGHT = Report(
    name="mypackage.ops:softplus",
    verdict="right",
    rows=(Row("cotangent of x", "right", 1e-12, 1e-6, "jax.vjp of the reference"),),
    seconds=0.4211,
    settings={"jax": "0.10.2", "seed": "0"},
)

OPEN = Report(
    name="mypackage.ops:slow",
    verdict="inconclusive",
    rows=(Row("cotangent of x", "unresolved", against="finite differences did not settle"),),
    reasons=("no witness settled: finite differences of x differ by 3e-2",),
    seconds=21.0,
)

ALL = (WRONG, RIGHT, OPEN)


def with_example(**example: np.ndarray) -> Report:
    """A wrong report whose finding fails on this input."""
    finding = dataclasses.replace(MISSING_TERM, example=example)
    return dataclasses.replace(WRONG, findings=(finding,))


NASTY = '<b>&"|`_*[x](y)%0A\n::error::, \x07'  # what each format has to escape


def nasty() -> Report:
    place = Place(f"{NASTY}.py", 1, NASTY)
    finding = Finding("sign", NASTY, NASTY, NASTY, NASTY, place, Repair(NASTY, place, "a", NASTY))
    row = Row(NASTY, "wrong", 1.0, 0.1, NASTY)
    return Report(NASTY, "wrong", (finding,), (row,), (NASTY,), (NASTY,), 1.0, {"jax": NASTY})


ARRAYS = {
    "scalar": np.float32(0.1),
    "f64": np.linspace(-1, 1, 7).reshape(7, 1) / 3,
    "f32": np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32),
    "f16": np.array([0.1, 65504], np.float16),
    "bf16": np.array([[0.1, 1e30]], ml_dtypes.bfloat16),
    "special": np.array([np.nan, np.inf, -np.inf, -0.0, 1e-40], np.float32),
    "all_nan": np.full(4, np.nan),
    "complex": np.array([1 + 2j, complex(np.nan, -np.inf), 0.1j], np.complex64),
    "integers": np.array([[1, -2], [3, 2**31 - 1]], np.int32),
    "unsigned": np.array(7, np.uint8),
    "booleans": np.array([True, False, True]),
    "constant": np.full((64, 64), -2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}
