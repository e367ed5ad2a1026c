"""The benchmark of memory: what it measures does not vary, so its figures are gates."""

from __future__ import annotations

from typing import Any

import jax
import pytest

from benchmarks.__main__ import main
from benchmarks.losses import LOSSES
from benchmarks.memory import measure


def test_a_stack_of_layers_keeps_its_budgets_at_few_operations() -> None:
    rows = {row.way: row for row in measure("gelu_stack", (0.7, 0.5, 0.35))}
    assert rows["bp.value_and_grad"].memory == pytest.approx(1.0, abs=0.01)
    for share, most in [(0.7, 1.07), (0.5, 1.2), (0.35, 1.35)]:
        row = rows[f"recompute {share}"]
        assert row.memory is not None and row.operations is not None
        assert row.memory <= share and row.operations <= most


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_a_gradient_at_its_shapes(name: str) -> None:
    loss, args = LOSSES[name](jax.checkpoint)
    value, bars = jax.eval_shape(jax.value_and_grad(loss), *args)
    assert value.shape == () and jax.tree.structure(bars) == jax.tree.structure(args[0])


def test_what_is_printed(capsys: Any) -> None:
    assert main(["memory", "--losses", "mlp", "--budgets", "0.7", "0.2"]) == 0
    out = capsys.readouterr().out
    assert "recompute 0.7" in out and "below the floor" in out and "checkpoint, dots saved" in out
    assert main(["memory", "--losses", "mlq"]) == 2
    assert main(["memory", "--budgets", "1.5"]) == 2
    assert "a share between 0 and 1" in capsys.readouterr().err
