"""The demo: what it promises on the command line, and that its comparison can fail."""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from functional_bp.cli import demo
from functional_bp.cli.demo import RELATIVE_TOLERANCE, compare, load_digits


def run(*options: str) -> int:
    parser = argparse.ArgumentParser("functional-bp demo")
    demo.add_arguments(parser)
    assert len(jax.devices()) == 8  # before a run asks for fewer, which would be all there are
    with jax.enable_x64(False):
        return demo.run(parser.parse_args(options))


@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.long)])
def test_trains_to_97_percent(devices: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--devices", str(devices), "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["held_out_accuracy"] >= 0.97
    assert result["patience_ended"] and result["gradients_agree"]
    assert result["devices"] == devices
    rows = [(row["name"], row["witness"]) for row in result["comparison"]]
    assert [name for name, _ in rows] == ["W1", "W2"] * 2 and len(set(rows)) == 4


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 6))
def test_accuracy_does_not_depend_on_the_seed(
    seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--devices", "1", "--json", "--seed", str(seed)) == 0
    assert json.loads(capsys.readouterr().out)["held_out_accuracy"] >= 0.97


def test_prints_a_readable_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--devices", "3", "--epochs", "2", "--width", "8") == 0
    out = capsys.readouterr().out
    assert "64 made 63" in out  # three devices get 21 images each
    assert out.count("agrees") == 2 * 2 + 1  # parameters × witnesses, and the legend
    assert "epoch 2/2" in out and "held-out accuracy" in out and "What to try next" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out  # no escape codes outside a terminal


def test_a_narrow_terminal_has_whole_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert run("--devices", "1", "--epochs", "1", "--width", "4") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if not line.startswith("epoch")) <= 60
    assert "equations by hand" in " ".join(lines) and "compared with" in " ".join(lines)


def test_a_wrong_gradient_ends_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def scaled(fun: Any) -> Any:
        return lambda *args: jax.tree.map(lambda x: x * 1.0001, jax.grad(fun)(*args))

    monkeypatch.setattr(demo, "grad", scaled)
    assert run("--devices", "1", "--epochs", "1", "--width", "4") == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_divergence_ends_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--devices", "1", "--epochs", "2", "--learning-rate", "1e30") == 1
    assert "try a smaller --learning-rate" in capsys.readouterr().out
    assert run("--devices", "1", "--epochs", "2", "--learning-rate", "1e30", "--json") == 1
    refuse = lambda word: pytest.fail(f"{word} is no JSON")
    assert json.loads(capsys.readouterr().out, parse_constant=refuse)["objective"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--width 0", "argument --width: must be a whole number of at least 1, got '0'"),
        ("--epochs few", "argument --epochs: must be a whole number of at least 1, got 'few'"),
        ("--learning-rate 0", "argument --learning-rate: must be a number above 0, got '0'"),
        ("--learning-rate nan", "must be a number above 0, got 'nan'"),
        ("--weight-decay -1", "must be a number of at least 0, got '-1'"),
        ("--seed 4294967296", "of at least 0 and below 4294967296, got '4294967296'"),
    ],
)
def test_wrong_values(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(*options.split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--devices 8 --batch-size 7", "--batch-size 7 cannot be split over 8 devices"),
        ("--batch-size 1300", "more than the 1257 images"),
        ("--devices 9", "--devices 9, but this process has 8 already in use"),
    ],
)
def test_values_that_do_not_fit(
    options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*options.split()) == 2
    assert message in capsys.readouterr().err


def test_missing_scikit_learn_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    assert run("--devices", "1") == 2
    assert "pip install 'functional-bp[demo]'" in capsys.readouterr().err


def test_parts_are_stratified_and_disjoint() -> None:
    digits = load_digits(seed=3)
    assert {name: len(labels) for name, (_, labels) in digits.items()} == {
        "training": 1257, "validation": 180, "held_out": 360,
    }  # fmt: skip
    for _, labels in digits.values():
        shares = np.bincount(labels, minlength=10) / len(labels)
        assert shares.max() - shares.min() < 0.02  # the whole set: 0.097 to 0.102
    # All images of the set differ, so a shared one would be a leak between the parts.
    rows = np.concatenate([images for images, _ in digits.values()])
    assert len(np.unique(rows, axis=0)) == len(rows) == 1797
    np.testing.assert_allclose(digits["training"][0].mean(axis=0), 0, atol=1e-5)


def test_equations_by_hand_match_finite_differences() -> None:
    weights = jax.tree.map(lambda x: x.astype(jnp.float64), demo.initial_weights(0, 5))
    rng = np.random.default_rng(0)
    batch = rng.normal(size=(6, 64)), rng.integers(0, 10, 6)
    objective = partial(demo.penalised_loss, batch=batch, weight_decay=0.1)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape), weights)
    moved = [
        objective(jax.tree.map(lambda w, d, s=s: w + s * d, weights, direction))
        for s in (1e-6, -1e-6)
    ]
    bars = demo.hand_gradients(weights, batch, 0.1)
    slope = sum(float(jnp.vdot(bars[name], direction[name])) for name in bars)
    # Central difference with step 1e-6 in float64: error about 1e-10 relative to J ≈ 1e1.
    np.testing.assert_allclose((moved[0] - moved[1]) / 2e-6, slope, rtol=1e-7)


def test_compare_sees_a_difference_and_not_a_number() -> None:
    ours = {"a": jnp.ones(3), "b": {"c": jnp.arange(4.0)}}
    same = compare(ours, ours)
    assert [row["name"] for row in same] == ["a", "b.c"]
    assert all(row["agrees"] and row["largest"] == 0 for row in same)
    off = compare(ours, {"a": jnp.ones(3) * (1 + 2 * RELATIVE_TOLERANCE), "b": {"c": jnp.nan}})
    assert not any(row["agrees"] for row in off)


def test_no_file_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("--devices", "1", "--epochs", "1", "--width", "4") == 0
    assert not list(tmp_path.iterdir())
