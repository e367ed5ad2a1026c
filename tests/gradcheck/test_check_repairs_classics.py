"""Faults that people make again and again: what the report says, and what to write instead."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from sampling import sampled

import functional_bp as bp


def normal(seed: int, *shape: int) -> Any:
    return jax.random.normal(jax.random.key(seed), shape)


def batch_norm() -> Any:
    """Mean and variance are taken for constants."""

    def forward(x: Any) -> Any:
        mu = x.mean(0)
        var = x.var(0)
        r = 1 / jnp.sqrt(var + 1e-5)
        return (x - mu) * r, (r,)

    def backward(kept: Any, y_bar: Any) -> Any:
        (r,) = kept
        return (y_bar * r,)

    return forward, backward


def prelu() -> Any:
    """The slope's cotangent counts the entries that were let through, too."""

    def forward(x: Any, slope: Any) -> Any:
        return jnp.where(x > 0, x, slope * x), (x, slope)

    def backward(kept: Any, y_bar: Any) -> Any:
        x, slope = kept
        x_bar = jnp.where(x > 0, y_bar, slope * y_bar)
        return x_bar, jnp.sum(y_bar * x, axis=0)

    return forward, backward


def huber() -> Any:
    """The branch lacks the division by the threshold ½."""

    def forward(x: Any) -> Any:
        return jnp.where(jnp.abs(x) < 0.5, x * x, jnp.abs(x) - 0.25), (x,)

    def backward(kept: Any, y_bar: Any) -> Any:
        (x,) = kept
        return (y_bar * jnp.where(jnp.abs(x) < 0.5, x, jnp.sign(x)),)

    return forward, backward


def log_softmax() -> Any:
    """The sum runs over the batch as well."""

    def forward(x: Any) -> Any:
        y = x - jax.scipy.special.logsumexp(x, axis=-1, keepdims=True)
        return y, (y,)

    def backward(kept: Any, y_bar: Any) -> Any:
        (y,) = kept
        return (y_bar - jnp.exp(y) * jnp.sum(y_bar),)

    return forward, backward


def upsampling() -> Any:
    """A mean in the place of a sum over two of six axes."""

    def forward(x: Any) -> Any:
        return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2), ()

    def backward(kept: Any, y_bar: Any) -> Any:
        n, h, w, c = y_bar.shape
        return (y_bar.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4)),)

    return forward, backward


def inverse() -> Any:
    """Both factors lack a transposition."""

    def forward(a: Any) -> Any:
        inv = jnp.linalg.inv(a)
        return inv, (inv,)

    def backward(kept: Any, y_bar: Any) -> Any:
        (inv,) = kept
        return (-inv @ y_bar @ inv,)

    return forward, backward


def backpropagation_through_time() -> Any:
    """The weight's cotangent reads the state after the step in place of the one before."""

    def forward(w: Any, h: Any, xs: Any) -> Any:
        hs = [h]
        for t in range(3):
            hs.append(jnp.tanh(xs[t] + hs[-1] @ w))
        return jnp.stack(hs[1:]), (w, jnp.stack(hs))

    def backward(kept: Any, y_bar: Any) -> Any:
        w, hs = kept
        w_bar, h_bar, xs_bar = jnp.zeros_like(w), jnp.zeros_like(hs[0]), []
        for t in reversed(range(3)):
            z_bar = (y_bar[t] + h_bar) * (1 - hs[t + 1] ** 2)
            w_bar = w_bar + hs[t + 1].T @ z_bar
            h_bar = z_bar @ w.T
            xs_bar.append(z_bar)
        return w_bar, h_bar, jnp.stack(xs_bar[::-1])

    return forward, backward


CASES: dict[str, tuple[Callable[[], Any], tuple[Any, ...], str, str]] = {
    "prelu": (prelu, (normal(1, 6, 3), normal(2, 3)), "missing factor", "y_bar * x * (x < 0)"),
    "huber": (huber, (normal(3, 6, 4),), "factor",
              "jnp.where(jnp.abs(x) < 0.5, x * 2, jnp.sign(x))"),
    "log_softmax": (log_softmax, (normal(4, 3, 7),), "axis",
                    "jnp.sum(y_bar, axis=1, keepdims=True)"),
    "upsampling": (upsampling, (normal(5, 2, 4, 4, 3),), "mean or sum",
                   "y_bar.reshape(n, h // 2, 2, w // 2, 2, c).sum((2, 4))"),
    "inverse": (inverse, (normal(6, 4, 4),), "transpose", "-inv.T @ y_bar @ inv.T"),
    "bptt": (backpropagation_through_time,
             (normal(12, 4, 4), normal(13, 2, 4), normal(14, 3, 2, 4)), "off by one", "hs[t]"),
}  # fmt: skip


@pytest.mark.parametrize("case", sampled(CASES, 3))
def test_kind_and_repair(case: str) -> None:
    make, args, kind, after = CASES[case]
    report = bp.check(make(), *args)
    assert report.verdict == "wrong"
    finding = report.findings[0]
    assert finding.kind == kind and finding.repair is not None
    assert finding.repair.after == after


def test_two_forgotten_paths_are_named_together() -> None:
    finding = bp.check(batch_norm(), normal(7, 8, 4)).findings[0]
    assert finding.kind == "missing term"
    assert "two paths at once" in finding.message
    assert "`mu` in `x - mu`" in finding.message
    through_the_variance = ("`r` in `(x - mu) * r`", "`jnp.sqrt(var + 1e-05)` in `1 / ")
    assert any(path in finding.message for path in through_the_variance)  # one and the same path


def test_what_is_not_finite_is_no_forgotten_path() -> None:
    """Dividing by the inputs fails where one of them is 0; no path of the forward pass is lost."""

    def forward(x: Any) -> Any:
        y = jnp.cumprod(x, axis=1)
        return y, (x, y)

    def backward(kept: Any, y_bar: Any) -> Any:
        x, y = kept
        return (jnp.flip(jnp.cumsum(jnp.flip(y_bar * y, 1), 1), 1) / x,)

    finding = bp.check((forward, backward), normal(8, 3, 6)).findings[0]
    assert finding.kind == "not finite" and "dropped" not in str(finding)


def test_a_claim_that_is_nearly_right_is_told_as_such() -> None:
    """The exact derivative of gelu, for the approximation by tanh."""

    def forward(x: Any) -> Any:
        return jax.nn.gelu(x, approximate=True), (x,)

    def backward(kept: Any, y_bar: Any) -> Any:
        (x,) = kept
        return (y_bar * (jax.scipy.stats.norm.cdf(x) + x * jax.scipy.stats.norm.pdf(x)),)

    finding = bp.check((forward, backward), normal(9, 5, 6)).findings[0]
    assert finding.kind == "other" and "another approximation" in finding.message
    assert finding.relative_error is not None and finding.relative_error < 1e-2


def test_nobody_is_warned_of_numbers_that_the_search_meets() -> None:
    """Logarithms of 0 and products of 0 and ∞ are what a search for bad inputs comes by."""

    def forward(x: Any, p: Any) -> Any:
        return x**p, (x, p)

    def backward(kept: Any, y_bar: Any) -> Any:
        x, p = kept
        return y_bar * p * x ** (p - 1), y_bar * x**p * jnp.log(p * p)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        report = bp.check((forward, backward), jnp.abs(normal(32, 5)) + 0.1, normal(33, 5))
    assert report.findings[0].kind == "wrong operand"
    assert not [str(w.message) for w in warned]
