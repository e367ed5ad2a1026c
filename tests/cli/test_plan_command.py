"""``functional-bp plan``: what it prints and writes, with what exit status, on how many devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from functional_bp.cli.main import main

MODEL = """
import jax
import jax.numpy as jnp


def loss(w, x, y):
    return jnp.mean((jnp.tanh(x @ w) - y) ** 2)


def example_inputs():
    f32 = lambda *shape: jax.ShapeDtypeStruct(shape, "float32")
    return f32(64, 64), f32(256, 64), f32(256, 64)
"""


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    file = tmp_path / "model_of_plan.py"
    file.write_text(MODEL)
    return ["plan", f"{file}:loss", "--devices", "2", "--optimizer", "sgd"]


def test_a_plan_is_printed_and_its_explanation_written(
    words: list[str], tmp_path: Path, capsys: Any
) -> None:
    page = tmp_path / "plan.html"
    assert main([*words, "--memory", "260 KiB", "--save", str(page)]) == 0
    out = capsys.readouterr().out
    assert "loss on 2 devices" in out and "of 260.0 KiB" in out and "Law of the batch: mean" in out
    assert "Candidates" in page.read_text() and "<svg" in page.read_text()


def test_where_nothing_fits_the_exit_status_is_one(words: list[str], capsys: Any) -> None:
    assert main([*words, "--memory", "2 KiB"]) == 1
    assert "do not fit the devices" in capsys.readouterr().out


def test_a_wrong_call_has_exit_status_two(words: list[str], capsys: Any) -> None:
    assert main([*words, "--memory", "much"]) == 2
    assert "no size of a memory" in capsys.readouterr().err
    assert main([*words, "--memory", "1 MiB", "--save", "plan.pdf"]) == 2
    assert "says no format" in capsys.readouterr().err
    assert main([*words[:3], "64", "--memory", "1 MiB"]) == 2
    assert "not so many devices" in capsys.readouterr().err


def test_devices_are_simulated_where_there_is_one(words: list[str]) -> None:
    bare = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "functional_bp", *words, "--memory", "1 MiB"]
    ended = subprocess.run(command, env=bare, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert "loss on 2 devices" in ended.stdout
