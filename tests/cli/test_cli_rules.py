"""The command line, and its command ``rules``, run as a person runs them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from jax import lax
from jax.extend.core import Primitive

import functional_bp as bp
from functional_bp.cli import gallery, main
from functional_bp.engine import improvements as declared

PACKAGE = Path(bp.__file__).parent


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    status = main.main(list(words))
    printed = capsys.readouterr()
    return status, printed.out, printed.err


# The command line


def test_help_imports_no_jax() -> None:
    # the package itself loads JAX; the command line alone must not
    code = (
        "import sys, types\n"
        "sys.modules['jax'] = None\n"
        f"package = types.ModuleType('functional_bp'); package.__path__ = [{str(PACKAGE)!r}]\n"
        "sys.modules['functional_bp'] = package\n"
        "from functional_bp.cli.main import main\n"
        "assert main(['--help']) == 0 and main(['rules', '--help']) == 0\n"
        "print(any(name.split('.')[0] in ('rich', 'numpy') for name in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    for name in main.COMMANDS:
        assert re.search(rf"^    {name}\s", done.stdout, re.MULTILINE)


def test_python_dash_m_runs_the_same() -> None:
    words = [sys.executable, "-m", "functional_bp"]
    done = subprocess.run([*words, "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == main._version() + "\n"
    assert subprocess.run([*words, "no-such"], capture_output=True).returncode == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no-such"], "invalid choice: 'no-such'"),
        ([], "usage: functional-bp"),
        (["rules", "--no-such"], "unrecognized arguments: --no-such"),
        (["rules", "tanhh"], "no rule's name contains 'tanhh'; near it: tanh"),
        (["rules", "--improvements", "no such"], "no improvement's name contains 'no such'"),
    ],
)
def test_wrong_calls_say_so_on_stderr(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    status, out, err = call(capsys, *words)
    assert status == 2 and message in err and not out


def test_version_and_statuses(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(capsys, "--version")[:2] == (0, main._version() + "\n")
    module: Any = types.ModuleType("planted")
    module.add_arguments = lambda parser: parser.add_argument("--status", type=int)
    module.run = lambda args: args.status
    monkeypatch.setitem(sys.modules, "planted", module)
    monkeypatch.setitem(main.COMMANDS, "planted", ("planted", "return what it is told"))
    for expected in (0, 1, 2):
        assert call(capsys, "planted", "--status", str(expected))[0] == expected

    def stopped(args: Any) -> int:
        raise KeyboardInterrupt

    module.run = stopped
    assert call(capsys, "planted")[0] == 130


@pytest.mark.long
def test_a_reader_that_leaves_early_is_no_error() -> None:
    line = f"{sys.executable} -m functional_bp rules --json | head -c 10"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize("name", sorted(main.COMMANDS))
def test_every_command_keeps_the_protocol(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, name, "--help")
    assert status == 0 and out.startswith(f"usage: functional-bp {name}")


# rules


def test_every_rule_is_listed_with_its_facts(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "rules", "--json")
    listed = json.loads(out)
    assert status == 0 and len(listed) == len(bp.rules)
    assert {entry["primitive"] for entry in listed} == {p.name for p in bp.rules}
    facts = {entry["primitive"]: entry for entry in listed}
    # what the calculus says has to be kept: nothing for a sum, the other factor for a product
    assert facts["add"]["keeps"] == {"x": [], "y": []}
    assert facts["mul"]["keeps"] == {"x": ["y"], "y": ["x"]}
    assert facts["exp"]["signature"] == "x -> y" and facts["exp"]["keeps"] == {"x": ["y"]}
    assert facts["floor"]["kind"] == "piecewise constant" and facts["floor"]["keeps"] == {}
    assert facts["scan"]["kind"] == "structural"


def test_the_file_and_line_are_where_the_rule_stands() -> None:
    facts = gallery.describe_rule(bp.rules[lax.tanh_p])
    assert facts["file"].startswith("functional_bp/vjps/")
    line = (PACKAGE.parent / facts["file"]).read_text().splitlines()[facts["line"] - 1]
    assert "tanh_p" in line


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    status, out, _ = call(capsys, "rules", "an")
    lines = out.splitlines()
    assert status == 0 and max(map(len, lines)) < 180  # combining bars take no room
    heading = "primitive formula keeps at kinks improves reference"
    assert " ".join(lines[0].split()) == heading
    shown = {line.split()[0] for line in lines[2:-1] if line.split()}
    expected = {p.name for p in bp.rules if "an" in p.name}
    assert shown == expected
    assert lines[-1].startswith(f"{len(expected)} rules: ")
    monkeypatch.setenv("COLUMNS", "80")
    narrow = call(capsys, "rules", "an")[1].splitlines()
    assert narrow[0].split() == ["primitive", "formula", "keeps"]


def test_one_rule_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "rules", "mul")
    assert status == 0 and out.startswith("mul   x, y -> z\n")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines()[2:7])
    rule = bp.rules[lax.mul_p]
    assert rows["kind"] == "pullback" and rows["keeps"] == "x_bar: y; y_bar: x"
    assert rows["cases"] == str(len(rule.cases)) and rows["source"].endswith(f".py:{rule.line}")
    assert rule.derivation.splitlines()[0] in out
    assert "lax.mul_p" in out, "the code of the rule is shown"
    status, out, _ = call(capsys, "rules", "exp")
    assert "See also: " in out and "expm1" in out.split("See also: ")[1]


def test_signature_and_keeps_of_every_form() -> None:
    made = Primitive("made_for_this_test")
    before = dict(bp.rules)
    try:
        rule = bp.rule(
            made,
            "x, y -> z | r",
            joint=lambda z_bar, x, r, *, wanted: {},
            forward=lambda x, y: (x, x),
            why="first line\nsecond",
            kinks="none",
        )
        assert rule is not None
        facts = gallery.describe_rule(rule)
    finally:
        if made in bp.rules:
            bp.rules.remove(made)
    assert dict(bp.rules) == before
    assert facts["signature"] == "x, y -> z | r"
    assert facts["keeps"] == {"x, y": ["x", "r"]}
    assert gallery.keeps(facts) == "x_bar, y_bar: x, r"
    assert facts["file"] == "tests/cli/test_cli_rules.py"
    code = gallery.code(facts)
    assert code.startswith("def test_signature_and_keeps_of_every_form") and '"x, y -> z' in code


# improvements

HALF = "division of small numbers in half precision"


def test_improvements_show_three_values(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "rules", "--improvements", HALF)
    assert status == 0 and out.startswith(HALF)
    rows = dict(line.split(maxsplit=1) for line in out.splitlines()[1:5])
    assert rows["JAX"].startswith("-inf") and rows["true"].startswith("-250")
    assert float(rows["ours"]) == pytest.approx(-250.0, rel=4e-3)
    (entry,) = json.loads(call(capsys, "rules", "--improvements", "--json", HALF)[1])
    assert entry["agrees"] is True and entry["dtype"] == "float16"


def test_an_improvement_that_is_none_is_a_failed_check(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = declared.Improvement("planted", lax.sin, (1.0,), 0, 0.6, "cos 1", "wrong on purpose")
    raising = declared.Improvement("planted, raises", lambda x: 1 / 0, (1.0,), 0, 0.6, "-", "-")
    monkeypatch.setattr(declared, "improvements", [wrong, raising])
    status, out, err = call(capsys, "rules", "--improvements")
    assert status == 1 and err.endswith("not the true value: planted, planted, raises\n")
    assert "0.540302   NOT THE TRUE VALUE" in out and "raises ZeroDivisionError" in out
