"""``functional-bp footprint``: what it prints and writes, with what exit status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from functional_bp.cli.main import main

MODEL = """
import jax
import jax.numpy as jnp


def loss(w, x):
    return jnp.mean(jnp.tanh(x @ w) ** 2)


def from_example(params, x):
    return jnp.mean(jnp.tanh(x @ params["w"]) ** 2)


def example_inputs():
    shape = jax.ShapeDtypeStruct
    return {"from_example": ({"w": shape((64, 64), "float32")}, shape((128, 64), "float32"))}
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    file = tmp_path / "model_of_footprint.py"
    file.write_text(MODEL)
    return str(file)


def shapes(rows: int) -> list[str]:
    return ["--shape", "w=f32[64,64]", "--shape", f"x=f32[{rows},64]"]


def test_what_fills_memory_is_printed(model: str, capsys: Any) -> None:
    assert main(["footprint", f"{model}:loss", *shapes(256)]) == 0
    out = capsys.readouterr().out
    assert "loss needs" in out and "peak of the program" in out and "16.0 KiB" in out


def test_shapes_of_any_size_are_compiled_and_no_array_is_made(model: str, capsys: Any) -> None:
    words = ["footprint", f"{model}:loss", *shapes(10**10), "--memory", "16GiB"]
    assert main(words) == 1
    assert "does not fit 16GiB" in capsys.readouterr().out


def test_exit_status_says_whether_it_fits(model: str, capsys: Any) -> None:
    target = f"{model}:from_example"
    assert main(["footprint", target, "--memory", "1 GiB", "--optimizer", "adam"]) == 0
    assert "optimizer state" in capsys.readouterr().out
    assert main(["footprint", target, "--memory", "1 kB", "--largest", "x.shape[0]"]) == 2
    assert "no size of x.shape[0] fits" in capsys.readouterr().err
    assert main(["footprint", target, "--memory", "90 kB", "--largest", "x.shape[0]"]) == 1
    assert "x.shape[0] = " in capsys.readouterr().out
    assert main(["footprint", target, "--growth"]) == 0
    assert "for each" in capsys.readouterr().out


def test_it_is_written_where_it_is_asked_for(model: str, tmp_path: Path, capsys: Any) -> None:
    files = [str(tmp_path / name) for name in ("m.svg", "m.html", "m.md", "m.txt")]
    words = [word for file in files for word in ("--save", file)]
    assert main(["footprint", f"{model}:loss", *shapes(64), *words]) == 0
    assert capsys.readouterr().out.split() == files
    starts = [Path(file).read_text()[:4] for file in files]
    assert starts == ["<svg", "<!DO", "loss", "loss"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "no inputs to count it for"),
        ("--shape w=f32[64,64] --shape x=f32[3,5]", "cannot be compiled"),
        ("--shape w=f32[64,64] --shape x=f32[3,64] --memory much", "no size of a memory"),
        ("--shape w=f32[64,64] --shape x=f32[3,64] --largest x.shape[0]", "add --memory"),
        ("--shape w=f32[64,64] --shape x=f32[3,64] --optimizer adamo", "no optimizer 'adamo'"),
        ("--shape w=f32[64,64] --shape x=f32[3,64] --save m.pdf", "says no format"),
        ("--shape w=f32[64,64] --shape x=f32[3,64] --argnums 4", "argnums"),
    ],
)
def test_wrong_calls_are_refused(model: str, words: str, said: str, capsys: Any) -> None:
    assert main(["footprint", f"{model}:loss", *words.split()]) == 2
    assert said in capsys.readouterr().err


def test_derivatives_are_told_by_order(model: str, capsys: Any) -> None:
    assert main(["footprint", f"{model}:from_example", "--orders", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = lines[lines.index("Derivatives of from_example") :]
    assert [line.split()[0] for line in table[-2:]] == ["0", "1"] and "run in" not in table[1]
    assert main(["footprint", f"{model}:from_example", "--orders", "-1"]) == 2
    assert "no order of a derivative" in capsys.readouterr().err
