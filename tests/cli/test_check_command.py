"""``functional-bp check``: its options, what it prints in what form, and its exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from checked_package import call
from sample_reports import RIGHT

import functional_bp as bp
from functional_bp.cli import main
from functional_bp.gradcheck import check as checker
from functional_bp.gradcheck.report import Report

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


# Options, and what is handed to the checker


def test_options_reach_the_checker(ops: Any, calls: list[Any], tmp_path: Path) -> None:
    status = main.main(
        "check kit.ops:loss_gradient --of kit.ops:loss --argnums 0 --seed 7 --quick --seconds 2.5 "
        "--reference kit/ops.py:loss --expect -1 --shape w=f32[3]".split()
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
        main.main(["check", "kit.ops:double", "--shape", "x=f32[3]", "--expect", text])
        assert calls.pop().options["expect"] == expected


def test_the_options_of_a_mark_hold_unless_overruled(ops: Any, calls: list[Any]) -> None:
    main.main(["check", "kit.ops:marked", "--seed", "3"])
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
    assert main.main(words) == expected


def test_formats(ops: Any, calls: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    out = {
        kind: call(capsys, "kit.ops:cube", "--shape", "x=f32[2]", "--format", kind)[1]
        for kind in ("text", "json", "markdown", "html")
    }
    assert out["text"].startswith("kit.ops:cube\n")
    assert Report.from_json(out["json"]).name == "kit.ops:cube"
    assert out["markdown"].startswith("## kit.ops:cube\n")
    assert out["html"].startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("file", "start"),
    [("a.html", "<!doctype"), ("a.md", "## "), ("a.json", "{"),
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
    assert status == main.INTERRUPTED and "stopped" in err
    assert out.splitlines()[-1] == "2 gradients: 2 right" and "softplus" in out


def test_help_says_all(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "--help")
    assert status == 0
    for part in ("MODULE:NAME", "--shape", "--inputs", "@bp.checked", "example_inputs()",
                 "--strict", "Exit status: 0 all right, 1"):  # fmt: skip
        assert part in out


def test_the_bar_is_shown_on_a_terminal_only(
    ops: Any, calls: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("kit.ops:softplus", "--shape", "x=f32[2]")
    assert call(capsys, *words)[2] == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the stream for a terminal
    assert "kit.ops:softplus" in call(capsys, *words)[2]
