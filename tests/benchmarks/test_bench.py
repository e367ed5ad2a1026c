"""``python -m benchmarks engine``: its columns, and that both sides compute the same."""

from __future__ import annotations

import argparse
import json
from typing import Any

import jax
import pytest
from sampling import sampled

from benchmarks import engine
from benchmarks.__main__ import main
from benchmarks.engine import SIDES, TRANSFORMS, measure, table
from benchmarks.models import models

RATIOS = ("trace_seconds", "compile_seconds", "run_seconds", "temporary_bytes", "flops")


@pytest.fixture(scope="module")
def rows() -> Any:
    """One row of the bench, measured once."""
    with jax.enable_x64(False):
        return measure({"mlp": models["mlp"]}, 1)


def test_every_column_is_there(rows: Any) -> None:
    (row,) = rows
    assert set(row) == {"model", "largest_error", *RATIOS} and row["model"] == "mlp"
    for column in RATIOS:
        assert set(row[column]) == {*SIDES, "ratio"}
        assert row[column]["jax"] > 0 and row[column]["bp"] >= 0 and row[column]["ratio"] >= 0


def test_both_sides_compute_the_same(rows: Any) -> None:
    # float32, two dense layers: sums of some hundred products, summed in different orders.
    assert rows[0]["largest_error"] < 1e-4


def test_no_more_flops_than_jax(rows: Any) -> None:
    assert rows[0]["flops"]["ratio"] <= 1.0


def test_the_table_has_a_line_per_model_and_the_median(rows: Any) -> None:
    lines = table(rows).splitlines()
    assert "below 1 are less" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["model", "mlp", "median"]


def test_the_command_prints_json(
    rows: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(engine, "measure", lambda *of: asked.append(of) or rows)
    assert main(["engine", "--models", "mlp", "--repeats", "1", "--json"]) == 0
    assert asked == [({"mlp": models["mlp"]}, 1)]
    (row,) = json.loads(capsys.readouterr().out)
    assert row["model"] == "mlp" and set(RATIOS) <= set(row)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["engine", "--models", "no_such_model"], "no_such_model"),
        (["engine", "--repeats", "0"], "--repeats"),
        (["engines"], "engines"),
    ],
)
def test_called_wrongly(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words]) == 2
    assert text in capsys.readouterr().err


def test_the_error_of_a_wrong_gradient_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = lambda f: lambda *args: jax.value_and_grad(lambda *a: 1.01 * f(*a))(*args)
    monkeypatch.setitem(TRANSFORMS["value_and_grad"], "bp", wrong)
    (row,) = measure({"mlp": models["mlp"]}, 1)
    assert row["largest_error"] > 5e-3


@pytest.mark.parametrize("name", sampled(["hessian-vector-product", "jacobian", "hessian"], 3))
def test_a_model_may_name_another_transform(name: str) -> None:
    assert models[name]().transform in TRANSFORMS and models[name]().transform != "value_and_grad"
    with jax.enable_x64(False):
        (row,) = measure({name: models[name]}, 1)
    assert row["largest_error"] < 1e-4  # float32, sums of some hundred products


def test_every_model_runs_by_name() -> None:
    parser = argparse.ArgumentParser()
    engine.add_arguments(parser)
    args = parser.parse_args(["--models", *models])
    assert args.models == list(models) and args.repeats == 9
