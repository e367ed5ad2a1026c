"""A package with right and wrong gradients on disk, and a call of ``functional-bp check`` on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from sample_reports import ALL, RIGHT, WRONG

from functional_bp.cli import main
from functional_bp.gradcheck import check as checker
from functional_bp.gradcheck import targets
from functional_bp.gradcheck.report import Report
from functional_bp.gradcheck.targets import Target

OPS = '''
"""Operations with hand-derived gradients, one of them wrong."""
import functools
import jax
import jax.numpy as jnp
import functional_bp as bp


def softplus_value(x):
    return jnp.logaddexp(x, 0.0)


softplus = jax.custom_vjp(softplus_value)
softplus.defvjp(lambda x: (softplus(x), x), lambda x, y_bar: (y_bar * jax.nn.sigmoid(x),))


def cube_value(x):
    return x**3


def cube_fwd(x):
    return x**3, x


def cube_bwd(x, y_bar):
    return (2 * y_bar * x**2,)


cube = jax.custom_vjp(cube_value)
cube.defvjp(cube_fwd, cube_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def shifted(x, axis=-1):
    return x - x.mean(axis, keepdims=True)


shifted.defvjp(lambda x, axis: (shifted(x, axis), None),
               lambda axis, _, y_bar: (y_bar - y_bar.mean(axis, keepdims=True),))


def dense(x, w, b):
    return x @ w + b


def dense_forward(x, w, b):
    return x @ w + b, (x, w)


def dense_backward(kept, y_bar):
    x, w = kept
    return y_bar @ w.T, x.T @ y_bar, y_bar.sum(0)


def loss(w):
    return jnp.sum(w**2)


def loss_gradient(w):
    return 2 * w


def with_a_dictionary(params):
    return params["w"] * 2.0


double = bp.operation("x -> y", lambda x: 2 * x, x=lambda y_bar: 2 * y_bar)
marked = bp.checked(jnp.ones(3), quick=True)(
    bp.operation("x -> y", lambda x: 3 * x, x=lambda y_bar: 3 * y_bar))
fast_softplus = jax.jit(softplus)
alias = softplus
'''


@pytest.fixture
def ops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module above as ``kit.ops``, in the working folder."""
    package = tmp_path / "kit"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "ops.py").write_text(OPS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield targets.load("kit.ops")
    for name in [name for name in sys.modules if name.split(".")[0] in ("kit", "alone", "other")]:
        del sys.modules[name]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """The calls of the checker, which answers that ``cube`` is wrong and ``slow`` not decided."""
    made: list[SimpleNamespace] = []

    def check(subject: Any, *args: Any, name: str, **options: Any) -> Report:
        made.append(SimpleNamespace(subject=subject, args=args, name=name, options=options))
        return WRONG if "cube" in name else ALL[2] if "slow" in name else RIGHT

    monkeypatch.setattr(checker, "check", check)
    return made


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of ``functional-bp check``."""
    status = main.main(["check", *words])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def shapes(inputs: tuple[Any, ...]) -> list[str]:
    return [f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else repr(x) for x in inputs]


def target_of(ops: ModuleType, name: str) -> Target:
    return targets.find(f"kit.ops:{name}")[0]
