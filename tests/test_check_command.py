"""``functional-bp check``: what it finds, on what inputs, in what form, with what exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sample_reports import ALL, RIGHT, WRONG

import functional_bp as bp
from functional_bp import cli
from functional_bp.check import annotations, checker, collect, example_inputs
from functional_bp.check.collect import Target
from functional_bp.check.report import Report

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
    yield collect.load("kit.ops")
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
    status = cli.main(["check", *words])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


# With the checker itself


def test_a_right_and_a_wrong_gradient(ops: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, "kit.ops:softplus", "--shape", "x=f32[5]", "--quick")
    assert status == 0 and err == ""
    assert out.startswith("kit.ops:softplus\njax ") and "✓ the gradient is right" in out
    status, out, _ = call(capsys, "kit/ops.py:cube", "--shape", "x=f32[3]:1..2", "--quick")
    assert status == 1 and "✗ cotangent of x: " in out
    assert "again: functional-bp check kit/ops.py:cube --shape 'x=f32[3]:1..2' --seed 0" in out


def test_a_gradient_function(ops: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("kit.ops:loss_gradient", "--of", "kit.ops:loss", "--shape", "w=f32[3]", "--quick")
    assert call(capsys, *words)[0] == 0
    assert call(capsys, *words, "--arg", "w")[0] == 0
    assert call(capsys, *words, "--expect", "-1")[0] == 1


def test_a_pair_by_its_names(ops: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = ("--shape", "x=f32[4,3]", "--shape", "w=f32[3,2]", "--shape", "b=f32[2]")
    assert call(capsys, "kit.ops:dense", *shapes, "--quick")[0] == 0


def test_a_rule_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "functional_bp:neg", "--quick")
    assert status == 0 and "case 0: cotangent of x" in out


def test_in_a_process_of_its_own(ops: ModuleType, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "functional_bp", "check", "kit.ops:cube", "--shape", "x=f32[2]"]
    environment = {**os.environ, "PYTHONPATH": str(Path(bp.__file__).parents[1])}
    done = subprocess.run(
        [*words, "--quick"], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 1 and "✗ the gradient is wrong" in done.stdout, done.stderr


# What is checked


def test_everything_of_a_module(ops: ModuleType) -> None:
    found = {target.short_name: target for target in collect.find("kit.ops")}
    assert list(found) == ["marked", "softplus", "cube", "shifted", "double", "dense"]
    assert found["softplus"].subject is ops.softplus and found["double"].subject is ops.double
    assert found["dense"].subject == (ops.dense_forward, ops.dense_backward)
    assert found["dense"].options == {"reference": ops.dense}
    assert found["marked"].options == {"quick": True} and len(found["marked"].arguments) == 1


def test_everything_of_a_package_once(ops: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "kit" / "more.py").write_text("from kit.ops import softplus, cube, marked\n")
    (tmp_path / "kit" / "broken.py").write_text("import no_such_library\n")
    (tmp_path / "kit" / "__main__.py").write_text("raise SystemExit(3)\n")
    targets = collect.find("kit")
    assert [target.name for target in targets if not target.error] == [
        f"kit.ops:{name}" for name in ("marked", "softplus", "cube", "shifted", "double", "dense")
    ]
    (broken,) = [target for target in targets if target.error]
    assert broken.name == "kit.broken" and "No module named 'no_such_library'" in broken.error
    assert f"{tmp_path}/kit/broken.py:1" in broken.error


def test_every_rule_of_ours_is_found() -> None:
    found = collect.find("functional_bp")
    derived = [rule for rule in bp.rules.values() if rule.kind not in collect.WITHOUT_GRADIENT]
    names = {target.short_name for target in found}
    assert {rule.primitive.name for rule in derived if rule.cases} <= names
    assert not [t for t in found if t.error or t.subject is None]
    assert not [t for t in found if "bench.corpus" in t.name]  # full of planted faults


def test_rules_of_a_persons_own_file(ops: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text(
        "import functional_bp as bp\n"
        "from jax.extend.core import Primitive\n"
        "from functional_bp.cases import case, real\n"
        "half_p = Primitive('half_of_alone')\n"
        "half_p.def_impl(lambda x: x / 2)\n"
        "bp.rule(half_p, 'x -> y', x=lambda y_bar: y_bar / 2, cases=[case(half_p.bind, real(3))])\n"
    )
    try:
        (target,) = collect.find("alone.py")
        assert target.name == "alone:half_of_alone" and target.brings_inputs
        assert collect.find("alone.py:half_of_alone")[0].subject is target.subject
        assert example_inputs.inputs_for(target) == ()
    finally:
        module: Any = sys.modules["alone"]
        bp.rules.remove(module.half_p)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("softplus", "custom_vjp"),
        ("fast_softplus", "custom_vjp"),
        ("double", "Operation"),
        ("dense", "tuple"),
        ("loss", "function"),
        ("marked", "Operation"),
    ],
)
def test_named(ops: ModuleType, name: str, kind: str) -> None:
    (target,) = collect.find(f"kit.ops:{name}")
    assert type(target.subject).__name__ == kind and target.name == f"kit.ops:{name}"


def test_files_in_packages_are_the_packages_modules(ops: ModuleType, tmp_path: Path) -> None:
    assert collect.load("kit/ops.py") is ops
    (tmp_path / "alone.py").write_text("import other\n")
    (tmp_path / "other.py").write_text("")
    assert collect.load("alone.py") is sys.modules["alone"]
    (tmp_path / "json.py").write_text("one = 1\n")  # takes the name of no other module
    assert collect.load("json.py").__name__ == "_checked_json" and sys.modules["json"] is json
    del sys.modules["_checked_json"]


# On what inputs


def shapes(inputs: tuple[Any, ...]) -> list[str]:
    return [f"{x.dtype}{list(x.shape)}" if hasattr(x, "dtype") else repr(x) for x in inputs]


def target_of(ops: ModuleType, name: str) -> Target:
    return collect.find(f"kit.ops:{name}")[0]


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("softplus", ["x=f32[4,3]"], ["float32[4, 3]"]),
        ("softplus", ["x=bf16[4]"], ["bfloat16[4]"]),
        ("softplus", ["x=float64"], ["float64[]"]),
        ("softplus", ["x=c64[]"], ["complex64[]"]),
        ("softplus", ["x=bool[3]"], ["bool[3]"]),
        ("softplus", ["x=key"], ["key<fry>[]"]),
        ("softplus", ["x=key[2,3]"], ["key<fry>[2, 3]"]),
        ("softplus", ["x=1.5"], ["1.5"]),
        ("shifted", ["x=f32[2,3]"], ["float32[2, 3]"]),
        ("shifted", ["axis=0", "x=i32[2,3]"], ["int32[2, 3]", "0"]),
        ("dense", ["x=f32[1,2]", "b=f32[3]", "w=f32[2, 3]"],
         ["float32[1, 2]", "float32[2, 3]", "float32[3]"]),
    ],
)  # fmt: skip
def test_shapes(ops: ModuleType, name: str, given: list[str], expected: list[str]) -> None:
    inputs = example_inputs.inputs_for(target_of(ops, name), shapes=given)
    assert shapes(inputs) == expected


def test_ranges_are_kept_and_the_seed_decides(ops: ModuleType) -> None:
    draw = lambda text, seed=0: example_inputs.draw(text, np.random.default_rng(seed))  # noqa: E731
    drawn = np.asarray(draw("f32[1000]:-1..0.5"))
    assert -1 <= drawn.min() < -0.9 and 0.4 < drawn.max() <= 0.5
    assert set(np.asarray(draw("i32[1000]:2..4")).tolist()) == {2, 3, 4}
    assert set(np.asarray(draw("i32[1000]")).tolist()) == {0, 1, 2, 3}
    assert abs(np.asarray(draw("c64[1000]:0..1")).imag).max() <= 1
    assert np.asarray(draw("f32[1000]")).std() == pytest.approx(1, rel=0.1)  # 4 standard errors
    assert np.array_equal(draw("f32[5]", 1), draw("f32[5]", 1))
    assert not np.array_equal(draw("f32[5]", 1), draw("f32[5]", 2))


def test_files(ops: ModuleType) -> None:
    x, w, b = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32), np.ones(4, np.float32)
    np.savez("named.npz", b=b, w=w, x=x)
    np.savez("in_order.npz", x, w, b)
    for file in ("named.npz", "in_order.npz"):
        inputs = example_inputs.inputs_for(target_of(ops, "dense"), file=file)
        assert shapes(inputs) == ["float32[2, 3]", "float32[3, 4]", "float32[4]"]
    np.savez("nested.npz", **{"params/w": x, "params/deep/b": b})
    (params,) = example_inputs.inputs_for(target_of(ops, "with_a_dictionary"), file="nested.npz")
    assert shapes((params["w"], params["deep"]["b"])) == ["float32[2, 3]", "float32[4]"]


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (lambda name: {"softplus": (1.0,)}[name], (1.0,)),
        (lambda: (1.0,), (1.0,)),
        (lambda: [1.0], (1.0,)),
        (lambda: 1.0, (1.0,)),
        (lambda: {"softplus": (1.0,), "cube": (2.0,)}, (1.0,)),
    ],
)
def test_example_inputs(ops: Any, example: Any, expected: tuple[Any, ...]) -> None:
    ops.example_inputs = example
    assert example_inputs.inputs_for(target_of(ops, "softplus")) == expected


def test_marks_give_arrays_or_a_function_that_makes_them(ops: ModuleType) -> None:
    inputs = lambda *arguments: example_inputs.inputs_for(  # noqa: E731
        Target("m:softplus", ops.softplus, ops, arguments)
    )
    assert inputs(1.0) == (1.0,) == inputs(lambda: (1.0,)) == inputs(lambda: 1.0)


def test_the_order_of_the_ways(ops: Any) -> None:
    np.savez("x.npz", x=np.zeros(7))
    ops.example_inputs = lambda: (np.zeros(4),)
    marked = Target("m:softplus", ops.softplus, ops, (np.zeros(5),))
    plain = Target("m:softplus", ops.softplus, ops)
    size = lambda target, **ways: example_inputs.inputs_for(target, **ways)[0].size  # noqa: E731
    assert size(marked, file="x.npz", shapes=["x=f32[6]"]) == 7
    assert size(marked, shapes=["x=f32[6]"]) == 6
    assert size(marked) == 5
    assert size(plain) == 4


class Float:
    """Annotations with the attributes of jaxtyping's."""

    def __init__(self, dim_str: str, *dtypes: str) -> None:
        self.dim_str, self.dtypes = dim_str, list(dtypes)


def of_objects(
    x: Float("b d", "float16", "float32", "float64"),  # type: ignore[valid-type]  # noqa: F722
    ids: Float("b", "int8", "int32"),  # type: ignore[valid-type]  # noqa: F821
    scale: Float("d", "bfloat16"),  # type: ignore[valid-type]  # noqa: F821
    half: float,
    axis: int = -1,
) -> Any: ...


of_objects.__annotations__ = {
    "x": Float("b d", "float16", "float32", "float64"),
    "ids": Float("b", "int8", "int32"),
    "scale": Float("d", "bfloat16"),
    "half": float,
    "axis": int,
}


def of_texts(x, ids, scale, half, axis=-1): ...  # type: ignore[no-untyped-def]


of_texts.__annotations__ = {
    "x": 'jt.Float[Array, "b d"]', "ids": 'Int[jax.Array, "b"]', "half": "float",
    "scale": "BFloat16[Array, 'd']", "axis": "int", "return": 'Float[Array, "b"]',
}  # fmt: skip


@pytest.mark.parametrize("function", [of_objects, of_texts])
def test_annotations(function: Any) -> None:
    inputs = example_inputs.inputs_for(Target("m:f", function))
    assert shapes(inputs) == ["float32[3, 4]", "int32[3]", "bfloat16[4]", "float32[]", "-1"]


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        ("", ()),
        ("b t d", (3, 4, 5)),
        ("b b", (3, 3)),
        ("3 b=4", (3, 4)),
        ("n=b n2=b", (3, 3)),
        ("#b ?d", (3, 4)),
        ("*batch d", (3, 4)),
        ("... d", (3, 4)),
        ("_ _", (3, 4)),
        ("b 2*b b-1 b+d", (3, 6, 2, 7)),
    ],
)
def test_dimensions(dims: str, expected: tuple[int, ...]) -> None:
    assert annotations.shape_of(dims, annotations.Sizes()) == expected


def test_sizes_are_all_different_and_shared() -> None:
    sizes = annotations.Sizes()
    names = [f"axis{k}" for k in range(20)]
    assert len({sizes[name] for name in names}) == 20
    assert annotations.shape_of("axis3 axis0", sizes) == (sizes["axis3"], sizes["axis0"])


# Options, and what is handed to the checker


def test_options_reach_the_checker(ops: Any, calls: list[Any], tmp_path: Path) -> None:
    status = cli.main(
        [
            "check",
            "kit.ops:loss_gradient",
            "--of",
            "kit.ops:loss",
            "--argnums",
            "0",
            "--seed",
            "7",
            "--quick",
            "--seconds",
            "2.5",
            "--reference",
            "kit/ops.py:loss",
            "--expect",
            "-1",
            "--shape",
            "w=f32[3]",
        ]  # fmt: skip
    )
    assert status == 0
    (made,) = calls
    assert made.subject is ops.loss_gradient and made.name == "kit.ops:loss_gradient"
    assert made.options == {
        "of": ops.loss, "argnums": 0, "seed": 7, "quick": True, "seconds": 2.5,
        "reference": ops.loss, "expect": -1.0,
    }  # fmt: skip


def test_expectations(ops: Any, calls: list[Any]) -> None:
    for text, expected in (("straight-through", "straight-through"), ("kit.ops:cube", ops.cube)):
        cli.main(["check", "kit.ops:double", "--shape", "x=f32[3]", "--expect", text])
        assert calls.pop().options["expect"] == expected


def test_the_options_of_a_mark_hold_unless_overruled(ops: Any, calls: list[Any]) -> None:
    cli.main(["check", "kit.ops:marked", "--seed", "3"])
    assert calls[0].options == {"quick": True, "seed": 3}


def test_the_command_that_is_shown_repeats_the_check(
    ops: Any, calls: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["kit/ops.py:cube", "--shape", "x=f32[3]:0..1", "--seed", "5", "--quick"]
    _, out, _ = call(capsys, *words, "--format", "json")
    rerun = json.loads(out)["settings"]["rerun"]
    assert rerun == ("functional-bp check kit/ops.py:cube --shape 'x=f32[3]:0..1' --seed 5 --quick")


# The report and the status


def test_a_whole_module(ops: Any, calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    ops.example_inputs = lambda name: None if name == "shifted" else (1.0,) * (
        3 if name == "dense" else 1)  # fmt: skip
    status, out, err = call(capsys, "kit")
    assert status == 1 and err == ""
    assert [made.name.partition(":")[2] for made in calls] == [
        "marked", "softplus", "cube", "double", "dense"]  # fmt: skip
    assert out.splitlines()[-1] == "6 gradients: 4 right, 1 wrong, 1 not decided"
    assert "?  kit.ops:shifted" in out
    assert "no inputs to check it on: the signature shifted(x, axis=-1)" in out
    assert "\nkit.ops:cube\njax" in "\n" + out and "\nkit.ops:softplus\njax" not in out


@pytest.mark.parametrize(
    ("name", "strict", "expected"),
    [("softplus", False, 0), ("cube", False, 1), ("slow", False, 0), ("slow", True, 1)],
)
def test_status(ops: Any, calls: list[Any], name: str, strict: bool, expected: int) -> None:
    ops.slow = ops.softplus
    words = ["check", f"kit.ops:{name}", "--shape", "x=f32[2]", *(["--strict"] if strict else [])]
    assert cli.main(words) == expected


def test_formats(ops: Any, calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    out = {
        kind: call(capsys, "kit.ops:cube", "--shape", "x=f32[2]", "--format", kind)[1]
        for kind in ("text", "json", "markdown", "html", "junit", "github")
    }
    assert out["text"].startswith("kit.ops:cube\n")
    assert Report.from_json(out["json"]).name == "kit.ops:cube"
    assert out["markdown"].startswith("## kit.ops:cube\n")
    assert out["html"].startswith("<!doctype html>")
    assert ElementTree.fromstring(out["junit"]).tag == "testsuites"
    assert out["github"].startswith("::error file=mypackage/ops.py,line=19,title=kit.ops%3Acube")


@pytest.mark.parametrize(
    ("file", "start"),
    [("a.html", "<!doctype"), ("a.md", "## "), ("a.json", "{"), ("a.xml", "<?xml"),
     ("a.txt", "kit.ops")],
)  # fmt: skip
def test_output_files(
    ops: Any, calls: list[Any], capsys: pytest.CaptureFixture[str], file: str, start: str
) -> None:
    status, out, _ = call(capsys, "kit.ops:cube", "--shape", "x=f32[2]", "--output", file)
    assert status == 1 and Path(file).read_text(encoding="utf-8").startswith(start)
    assert out.startswith("✗ the gradient is wrong: ") and out.endswith(f"\n{file}\n")


def test_text_is_as_wide_as_the_terminal(
    ops: Any, calls: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns in (80, 140):
        monkeypatch.setenv("COLUMNS", str(columns))
        _, out, _ = call(capsys, "kit.ops:cube", "--shape", "x=f32[2]")
        assert max(map(len, out.splitlines())) == columns


def test_what_is_done_is_shown_when_it_is_stopped(
    ops: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(subject: Any, *args: Any, name: str, **options: Any) -> Report:
        if "cube" in name:
            raise KeyboardInterrupt
        return RIGHT

    monkeypatch.setattr(checker, "check", check)
    ops.example_inputs = lambda: (1.0,)
    status, out, err = call(capsys, "kit.ops")
    assert status == cli.INTERRUPTED and "stopped" in err
    assert out.splitlines()[-1] == "2 gradients: 2 right" and "softplus" in out


# Called wrongly


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        ("kit.opps", ["there is no module 'kit.opps'", "near it: ops"]),
        ("kitt", ["there is no module 'kitt'", "near it: kit"]),
        ("kit/opps.py", ["there is no file", "near it: ops.py"]),
        ("kit.ops:softpuls", ["kit.ops has no 'softpuls'", "near it: softplus"]),
        ("kit.ops:dense_", ["kit.ops has no 'dense_'", "near it: dense"]),
        ("functional_bp:tanhh", ["functional_bp has no 'tanhh'", "near it: tanh"]),
        ("kit.empty", ["nothing to check in kit.empty", "kit.empty:NAME"]),
        ("kit.raising", ["kit.raising cannot be imported", "raising.py:2", "ValueError: seven"]),
        ("kit.needing", ["kit.needing cannot be imported", "No module named 'no_such'"]),
        ("raising.py", ["there is no file"]),
        ("kit.ops:softplus", ["no inputs to check it on", "the signature softplus(x)",
                              "--shape x=f32[4,3]", "--inputs FILE.npz", "example_inputs()",
                              "@bp.checked", 'Float[Array, "b d"]']),
        ("kit.ops:softplus --shape xx=f32[3]", ["kit.ops:softplus has no argument 'xx'",
                                                "expected: x", "near it: x"]),
        ("kit.ops:dense --shape x=f32[3]", ["nothing is given for w, b", "--shape w=f32[4,3]"]),
        ("kit.ops:softplus --shape f32[3]", ["--shape f32[3] cannot be read", "there is no ="]),
        ("kit.ops:softplus --shape x=4,3", ["4,3: say f32[4,3] for an array, or (4,3)"]),
        ("kit.ops:softplus --shape x=f32[a]", ["f32[a]: neither an array nor a Python literal"]),
        ("kit.ops:softplus --shape x=f31[3]", ["f31[3]: neither an array nor"]),
        ("kit.ops:softplus --inputs no.npz", ["no.npz cannot be read", "numpy.savez("]),
        ("kit.ops:softplus --inputs kit/ops.py", ["kit/ops.py cannot be read"]),
        ("kit.ops:softplus --inputs two.npz", ["the inputs do not fit kit.ops:softplus",
                                               "2 arguments: too many", "softplus(x)"]),
        ("kit.ops:softplus --inputs named.npz", ["kit.ops:softplus has no argument 'y'"]),
        ("kit --shape x=f32[3]", ["--shape is for one gradient", "6 in kit",
                                  "name it: kit.ops:marked, kit.ops:softplus", "…"]),
        ("kit --arg x", ["--arg is for one gradient"]),
        ("kit.ops:softplus --shape x=f32[3] --arg x", ["--arg and --argnums say", "add --of"]),
        ("kit.ops:loss_gradient --of kit.ops:loss --arg v", ["has no argument 'v'"]),
        ("kit.ops:loss_gradient --of kit.ops:loss --argnums x", ["--argnums cannot be read"]),
        ("kit.ops:loss_gradient --of kit.ops:los", ["kit.ops has no 'los'", "near it: loss"]),
        ("kit.ops:softplus --shape x=i32[3]", ["kit.ops:softplus cannot be checked",
                                               "TypeError: ", "no argument is a real"]),
        ("kit.ops:softplus --shape x=f32[3] --output no/folder.html", ["no/folder.html"]),
        ("kit.ops:softplus --shape x=f32[3] --expect nonsense", ["'nonsense'"]),
    ],
)  # fmt: skip
def test_wrong_calls(
    ops: ModuleType, capsys: pytest.CaptureFixture[str], words: str, messages: list[str]
) -> None:
    folder = Path("kit")
    (folder / "empty.py").write_text("one = 1\n")
    np.savez("two.npz", np.zeros(2), np.zeros(2))
    np.savez("named.npz", x=np.zeros(2), y=np.zeros(2))
    if "raising" in words or "needing" in words:
        (folder / "raising.py").write_text("\nraise ValueError('seven')\n")
        (folder / "needing.py").write_text("import no_such\n")
    status, out, err = call(capsys, *words.split(), *(["--quick"] if "--expect" in words else []))
    assert status == 2 and out == "", err
    assert err.startswith("functional-bp check: ")
    for message in messages:
        assert message in err


def test_a_dtype_that_is_switched_off(ops: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with jax.enable_x64(False):
        status, _, err = call(capsys, "kit.ops:softplus", "--shape", "x=f64[3]")
    assert status == 2 and "float64 is switched off" in err and "JAX_ENABLE_X64=1" in err


def test_annotations_that_cannot_be_read() -> None:
    def f(x): ...  # type: ignore[no-untyped-def]

    f.__annotations__ = {"x": 'Float[Array, "b 2**b"]'}
    with pytest.raises(example_inputs.InputsError, match="the annotation of x cannot be read"):
        example_inputs.inputs_for(Target("m:f", f))


def test_names_of_arguments_that_are_not_known() -> None:
    class Odd:
        __signature__ = "none"

        def __call__(self, x: Any) -> Any: ...

    with pytest.raises(example_inputs.InputsError, match="names of its arguments are not known"):
        example_inputs.inputs_for(Target("m:f", Odd()), shapes=["x=f32[3]"])


def test_a_module_in_which_nothing_has_inputs(
    ops: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("alone.py").write_text("import jax\nf = jax.custom_vjp(lambda x: x)\n"
                                "g = jax.custom_vjp(lambda x: x)\n")  # fmt: skip
    status, _, err = call(capsys, "alone.py")
    assert status == 2 and "alone:f: no inputs to check it on" in err


def test_a_lookup_without_module() -> None:
    with pytest.raises(collect.TargetError, match="write MODULE:NAME"):
        collect.lookup("loss")


def test_help_says_all(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "--help")
    assert status == 0
    for part in ("MODULE:NAME", "--shape", "--inputs", "@bp.checked", "example_inputs()",
                 "Float[Array", "--strict", "Exit status: 0 all right, 1"):  # fmt: skip
        assert part in out


def test_the_bar_is_shown_on_a_terminal_only(
    ops: Any, calls: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("kit.ops:softplus", "--shape", "x=f32[2]")
    assert call(capsys, *words)[2] == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the stream for a terminal
    assert "kit.ops:softplus" in call(capsys, *words)[2]


def test_jnp_is_used() -> None:
    assert isinstance(example_inputs.draw("f32[2]", np.random.default_rng(0)), jnp.ndarray)
