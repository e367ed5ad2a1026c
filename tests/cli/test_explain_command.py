"""``functional-bp explain``: what it prints and writes, on what inputs, with what exit status."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import functional_bp as bp
from functional_bp.cli import main
from functional_bp.explanation import explanation
from functional_bp.explanation.explanation import Explanation

MODEL = '''
"""Functions to explain."""
import jax
import jax.numpy as jnp
import functional_bp as bp


def gate(x, y, z):
    """g = (x + y) z."""
    return bp.name(x + y, "p") * z


def network(params, x, axis=0):
    h = bp.name(jnp.tanh(params["W"] @ x), "h")
    return jnp.sum(jnp.mean(h * h, axis=axis))


def doubled(x):
    return {"a": x * 2.0, "b": jnp.sum(x)}


def loop(w, xs):
    def step(h, x):
        return bp.name(jnp.tanh(w * h + x), "h"), None

    return jax.lax.scan(step, 0.0, xs)[0]


def endless(x):
    return jax.lax.while_loop(lambda s: s < 9.0, lambda s: s * 2.0, x)


def long(x, steps=500):
    for _ in range(steps):
        x = jnp.sin(x)
    return x


def shorter(x):
    return long(x, 50)


def picky(x):
    return x * 2.0 if x > 0 else x


def broken(x):
    raise RuntimeError("out of paint")


def log_of(x):
    return jnp.sum(jnp.log(bp.name(x * 1.0, "positive")))


@bp.checked(jnp.array([1.0, 2.0]))
def marked(x):
    return jnp.sum(x * x)


def example_inputs(name):
    return {"doubled": jnp.arange(3.0), "log_of": jnp.array([1.0, 0.0])}.get(name)


class Model:
    pass


CONSTANT = 3
'''

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """Exit status, standard output and error of the command, beside ``zoo/model.py``."""
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "__init__.py").write_text("")
    (tmp_path / "zoo" / "model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*words: str) -> tuple[int, str, str]:
        status = main.main(["explain", *words])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    yield run
    for name in [name for name in sys.modules if name.split(".")[0] in ("zoo", "inputs")]:
        del sys.modules[name]


GATED = "zoo.model:gate --shape x=1.0 --shape y=3.0 --shape z=-3.0"
GATE = GATED.split()
NETWORK = ("zoo/model.py:network", "--inputs", "batch.npz")


@pytest.fixture
def batch(call: Call) -> dict[str, np.ndarray]:
    """The arrays in ``batch.npz``."""
    rng = np.random.default_rng(0)
    arrays = {"params/W": rng.standard_normal((3, 4)), "x": rng.standard_normal(4)}
    np.savez("batch.npz", **arrays)  # pyright: ignore[reportArgumentType]
    return arrays


# What is printed


def test_both_sweeps_as_tables(call: Call) -> None:
    status, out, err = call(*GATE)
    assert status == 0 and err == ""
    for row in (
        r"p = x \+ y +4\.00",
        r"x̄ = p̄ +−3\.00 +1\.00 +−3\.00",
        r"z̄ = .* +1\.00 +4\.00 +4\.00",
    ):
        assert re.search(row, out), row
    assert "model.py:10" in out


def test_a_terminal_gets_colours(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def text(tables: Any, width: int, color: bool) -> str:
        seen.append({"width": width, "color": color})
        return ""

    monkeypatch.setattr("functional_bp.tables.text.text", text)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("functional_bp.cli.explain._is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "77")
    assert call(*GATE)[0] == 0
    monkeypatch.setenv("NO_COLOR", "1")
    assert call(*GATE)[0] == 0
    assert seen == [{"width": 77, "color": True}, {"width": 77, "color": False}]


def test_a_terminal_gets_200_rows(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("zoo.model:shorter", "--shape", "x=1.0")
    assert explanation.MOST_ROWS == 200
    monkeypatch.setattr(explanation, "MOST_ROWS", 20)
    status, out, err = call(*words)
    assert status == 0 and "left out" not in out and err == ""
    monkeypatch.setattr("functional_bp.cli.explain._is_terminal", lambda: True)
    status, out, err = call(*words)
    assert status == 0 and out.count("⋮ 31 rows are left out ⋮") == 2, out[-500:]
    assert "--rows 0 prints all of them" in err


def test_cotangents(call: Call, batch: dict[str, np.ndarray]) -> None:
    status, out, err = call(*NETWORK, "--cotangents", "h, params['W'],x")
    assert status == 0 and err == ""
    lines = [line.split("  ") for line in out.splitlines()]
    assert [line[0] for line in lines] == ["h", "params['W']", "x"]
    h = np.tanh(batch["params/W"] @ batch["x"])
    shown = re.findall(r"[−\d.]+\d", lines[0][-1])
    bars = [float(number.replace("−", "-")) for number in shown]
    np.testing.assert_allclose(bars, 2 * h / 3, atol=0.005)  # two decimals are printed
    assert "f64[3,4]" in out


def test_cotangents_of_names_in_brackets_and_of_what_is_not_reached(call: Call) -> None:
    status, out, _ = call("zoo.model:doubled", "--upstream", "3", "--cotangents", "result['a'],x")
    assert status == 0
    assert out.splitlines() == [
        "result['a']  f64[3]  (3.00 3.00 3.00)",
        "x            f64[3]  (9.00 9.00 9.00)",
    ]


# What is written


@pytest.mark.parametrize(
    ("file", "start"),
    [
        ("a.svg", b"<svg"),
        ("a.png", b"\x89PNG"),
        pytest.param("a.pdf", b"%PDF", marks=pytest.mark.long),
        ("a.html", b"<!"),
        ("a.md", b"**gate"),
        ("a.tex", b"\\"),
        ("a.txt", b"gate"),
    ],
)
def test_files(call: Call, tmp_path: Path, file: str, start: bytes) -> None:
    status, out, err = call(*GATE, "--save", file)
    assert (status, out, err) == (0, f"{file}\n", "")
    written = (tmp_path / file).read_bytes()
    assert written.removeprefix(b'<?xml version="1.0" encoding="UTF-8"?>\n').startswith(start)
    if file.endswith((".svg", ".html", ".md", ".txt")):
        assert "−12.00" in written.decode()


def test_several_files_and_how_they_are_drawn(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    save = lambda self, path, **options: seen.append((str(path), options))
    monkeypatch.setattr(Explanation, "save", save)
    words = ("--style", "d2l", "--theme", "dark", "--depth", "1")
    assert call(*GATE, "--save", "a.svg", "--save", "a.png", *words)[1] == "a.svg\na.png\n"
    options = {"style": "d2l", "theme": "dark", "depth": 1}
    assert seen == [("a.svg", options), ("a.png", options)]
    assert call(*GATE, "--save", "a.svg")[0] == 0 and seen[-1] == ("a.svg", {})


# What is explained, at what


def test_a_setting_is_not_differentiated_and_names_stay(call: Call) -> None:
    words = ("zoo.model:gate", "--shape", "x=2", "--shape", "y=f64[2]:1..2", "--shape", "z=3.0")
    status, out, err = call(*words, "--upstream", "1.0", "--cotangents", "y,z")
    assert status == 0 and "y  f64[2]  (3.00 3.00)" in out
    status, out, err = call(*words, "--upstream", "1.0", "--cotangents", "x")
    assert status == 2 and "no variable of gate is called x" in err


def test_inputs_of_a_python_file_of_a_mark_and_of_the_module(call: Call, tmp_path: Path) -> None:
    (tmp_path / "inputs.py").write_text("def example_inputs():\n    return 2.0, 3.0, 4.0\n")
    status, out, _ = call("zoo.model:gate", "--inputs", "inputs.py", "--cotangents", "x,z")
    assert status == 0 and out.split() == ["x", "f64[]", "4.00", "z", "f64[]", "5.00"]
    assert call("zoo.model:marked", "--cotangents", "x")[1] == "x  f64[2]  (2.00 4.00)\n"
    assert call("zoo.model:doubled", "--upstream", "0", "--cotangents", "x")[0] == 0


def test_loops(call: Call) -> None:
    words = ("zoo.model:loop", "--shape", "w=0.5", "--shape", "xs=f64[3]", "--cotangents")
    status, out, _ = call(*words, "h,h_3", "--unroll")
    assert status == 0 and "h_3  f64[]  1.00" in out
    words = ("zoo.model:endless", "--shape", "x=2.0", "--max-steps", "5", "--cotangents", "x")
    assert call(*words)[1] == "x  f64[]  8.00\n"


def test_a_loop_that_takes_more_steps_than_its_bound(call: Call) -> None:
    status, out, err = call("zoo.model:endless", "--shape", "x=1.0", "--max-steps", "2")
    assert (status, out) == (2, "")
    assert err.startswith("functional-bp explain: a loop took more than max_steps=2 steps")


def test_the_same_seed_draws_the_same(call: Call) -> None:
    words = ("zoo.model:gate", *(f"--shape={name}=f64" for name in "xyz"))
    first, again, other = (call(*words, "--seed", seed)[1] for seed in "112")
    assert first == again != other


# Not finite


def test_a_value_that_is_not_finite(call: Call) -> None:
    status, out, err = call("zoo.model:log_of", "--nonfinite")
    assert status == 1 and err == ""
    assert "positive[1] = 0.0" in out and "a = ln positive" in out and "model.py:" in out
    status, out, _ = call(*GATE, "--nonfinite")
    assert status == 0 and out == "every value and every gradient is finite\n"


# Errors


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("zoo.model:gat", ["zoo.model has no 'gat'", "near it: gate"]),
        ("zoo.modle:gate", ["there is no module 'zoo.modle'", "near it: model"]),
        ("zoo/modle.py:gate", ["there is no file", "near it: model.py"]),
        ("zoo.model", ["zoo.model is no function", "got:      a module", "gate, network"]),
        ("zoo/model.py", ["zoo/model.py is no function", "FILE.py:FUNCTION"]),
        ("zoo.model:CONSTANT", ["zoo.model:CONSTANT is no function", "got:      int"]),
        ("zoo.model:gate", ["no inputs to explain it at", "the signature gate(x, y, z)",
                            "--shape x=f32[4,3]"]),
        ("zoo.model:gate --shape x=1.0", ["nothing is given for y, z", "expected: x, y, z",
                                          "--shape y=f32[4,3]"]),
        ("zoo.model:gate --shape x=f64[2] --shape y=f64[3] --shape z=1.0",
         ["the inputs do not fit zoo.model:gate", "model.py:10",
          "x = f64[2], y = f64[3], z = float 1.0", "expected: gate(x, y, z)"]),
        ("zoo.model:broken --shape x=1.0", ["the inputs do not fit zoo.model:broken",
                                            "RuntimeError: out of paint"]),
        ("zoo.model:picky --shape x=1.0", ["zoo.model:picky cannot be traced",
                                           "TracerBoolConversionError", "jnp.where"]),
        ("zoo.model:gate --shape x", ["--shape x cannot be read"]),
        ("zoo.model:gate --inputs no.npz", ["no.npz cannot be read as an .npz file"]),
        ("zoo.model:gate --inputs no.py", ["there is no file"]),
        ("zoo.model:gate --inputs zoo/model.py", ["zoo/model.py has no inputs for zoo.model:gate",
                                                  "example_inputs(name) for 'gate'"]),
        ("zoo.model:doubled", ["doubled has no single gradient", "the output f64[3], f64[]",
                               "--upstream 1.0"]),
        ("zoo.model:gate --shape=x=2 --shape=y=2 --shape=z=2",
         ["the output i64[]", "numbers have a point, as in --shape x=-2.0"]),
        ("zoo.model:doubled --upstream 1 --cotangents y", ["is called y"]),
        ("zoo.model:loop --shape=w=0.5 --shape=xs=f64[3] --cotangents h",
         ["h stands inside a loop of loop", "write the loop out: --unroll;"]),
        ("zoo.model:endless --shape x=1.0",
         ["needs a bound", "to do:    give the largest number of steps it may take: --max-steps"]),
        ("zoo.model:long --shape x=1.0 --save a.svg",
         ["long is too large for a still picture", "--depth 0, 1, …", ".html"]),
        (f"{GATED} --save a.bmp", ["a.bmp names no format", "'.bmp'", ".svg, .png, .pdf"]),
        (f"{GATED} --save a", ["a names no format"]),
        (f"{GATED} --save nowhere/a.svg", ["nowhere/a.svg cannot be written", "No such file",
                                           "make its folder"]),
        (f"{GATED} --save nowhere/a.png", ["nowhere/a.png cannot be written"]),
        (f"{GATED} --style d2l", ["--style says how a file is drawn", "--save FILE.svg"]),
        (f"{GATED} --depth 1", ["--depth says how a file is drawn"]),
        (f"{GATED} --style manet", ["invalid choice: 'manet'"]),
        (f"{GATED} --theme pink", ["invalid choice: 'pink'"]),
    ],
)  # fmt: skip
def test_called_wrongly(call: Call, words: str, expected: list[str]) -> None:
    status, out, err = call(*words.split())
    assert status == 2 and out == ""
    for text in expected:
        assert text in err, err
    assert "Traceback" not in err


def test_a_png_without_the_extra(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = call(*GATE, "--save", "a.png")
    assert status == 2 and "pip install 'functional-bp[pictures]'" in err
    assert call(*GATE, "--save", "a.svg")[0] == 0


def test_help_says_what_there_is(call: Call) -> None:
    status, out, _ = call("--help")
    assert status == 0
    for word in ("--cotangents NAME,...", "--unroll", "example_inputs()", "Exit status"):
        assert word in out


def test_the_command_and_the_function_agree(call: Call) -> None:
    gate = lambda x, y, z: bp.name(x + y, "p") * z
    explanation = bp.explain(gate, 1.0, 3.0, -3.0)
    _, out, _ = call(*GATE, "--cotangents", "x,y,z,p")
    bars = [float(line.split()[-1].replace("−", "-")) for line in out.splitlines()]
    assert bars == [float(explanation.cotangent[name]) for name in "xyzp"] == [-3, -3, 4, -3]
    assert jnp.isfinite(explanation.value["result"])


def test_a_reader_that_has_seen_enough_is_no_error(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("functional_bp.cli.explain._print_tables", broken)
    monkeypatch.setattr(main, "_run", lambda args: args.run(args))
    with pytest.raises(BrokenPipeError):  # which the command line answers with a quiet 0
        call(*GATE)


def test_of_a_long_table_so_many_rows_are_printed(call: Call) -> None:
    status, out, err = call(*GATE, "--rows", "2")
    assert status == 0 and out.count("rows are left out") == 2
    assert "--rows 0 prints all of them" in err
    assert "left out" not in call(*GATE, "--rows", "0")[1]
