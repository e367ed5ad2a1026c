"""The marker ``bp.checked`` and the pytest plugin, in a pytest of their own."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import functional_bp as bp
from functional_bp.gradcheck import marks, targets

pytest_plugins = ["pytester"]

ROOT = str(Path(bp.__file__).parents[1])
PLUGIN = "functional_bp.gradcheck.plugin"

CUBES = """
import functools
import jax, jax.numpy as jnp
import functional_bp as bp

@bp.checked(lambda: (jnp.array([1.0, 2.0]),), quick=True)
@jax.custom_vjp
def right_cube(x):
    return x**3
right_cube.defvjp(lambda x: (x**3, x), lambda x, y_bar: (3 * y_bar * x**2,))

@bp.checked(jnp.array([1.0, 2.0]), quick=True)
@jax.custom_vjp
def wrong_cube(x):
    return x**3
wrong_cube.defvjp(lambda x: (x**3, x), lambda x, y_bar: (2 * y_bar * x**2,))
"""


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """For runs of pytest inside, which find this package, and this plugin alone.

    Only for these: pytester forgets every module that a test is the first to import.
    """
    monkeypatch.setenv("PYTHONPATH", ROOT)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    return pytester


def run(pytester: pytest.Pytester, *words: str) -> pytest.RunResult:
    """pytest in a process of its own, with this plugin and no other."""
    return pytester.runpytest_subprocess("-p", PLUGIN, "-p", "no:cacheprovider", *words)


# The marker


def test_marking_changes_nothing() -> None:
    @jax.custom_vjp
    def f(x: Any) -> Any:
        return x

    operation = bp.operation("x -> y", lambda x: 2 * x, x=lambda y_bar: 2 * y_bar)
    pair = (lambda x: (x, None), lambda kept, y_bar: (y_bar,))
    for subject in (f, operation, pair, jnp.sin):
        before = dict(getattr(subject, "__dict__", {}))
        assert bp.checked(jnp.ones(3))(subject) is subject
        assert dict(getattr(subject, "__dict__", {})) == before
    assert bp.checked(f) is f  # without parentheses
    kept = globals().pop(marks.KEPT_AS)
    assert [mark.subject for mark in kept] == [f, operation, pair, jnp.sin, f]
    assert kept[-1].arguments == () and len(kept[0].arguments) == 1


def test_a_function_without_parameters_makes_the_inputs() -> None:
    make = lambda: (jnp.ones(3),)
    decorate = bp.checked(make)
    assert decorate(jnp.sin) is jnp.sin
    (mark,) = globals().pop(marks.KEPT_AS)
    assert mark.arguments == (make,) and mark.subject is jnp.sin


def test_names_of_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "several", raising=False)
    file = tmp_path / "several.py"
    file.write_text(
        "import functional_bp as bp\n"
        "def f(x): return x\n"
        "bp.checked(1.0)(f)\n"
        "bp.checked(2.0, seed=3)(f)\n"
        "bp.checked(3.0, name='by hand')(f)\n"
        "bp.checked(4.0)((lambda x: (x, x), lambda x, y_bar: (y_bar,)))\n"
    )
    found = list(targets.marked_in(targets.load_file(file)))
    assert [target.name for target in found] == [
        "several:f", "several:f[2]", "several:by hand", "several:line 6"]  # fmt: skip
    assert found[1].options == {"seed": 3} and found[2].options == {}
    assert targets.find(f"{file}:f[2]")[0].arguments == (2.0,)
    del sys.modules["several"]


def test_a_module_that_is_imported_again_is_marked_once(tmp_path: Path) -> None:
    file = tmp_path / "again.py"
    file.write_text("import functional_bp as bp\nbp.checked(1.0)(abs)\n")
    for _ in range(2):
        assert len(marks.marks_in(targets.load_file(file))) == 1
        del sys.modules["again"]


# The fixture


def test_the_fixture(inner: pytest.Pytester) -> None:
    inner.makepyfile(cubes=CUBES)
    inner.makepyfile(
        """
        import jax.numpy as jnp
        from cubes import right_cube, wrong_cube
        def test_right(check_gradient):
            assert check_gradient(right_cube, jnp.array([1.0, 2.0]), quick=True).ok
        def test_wrong(check_gradient):
            check_gradient(wrong_cube, jnp.array([1.0, 2.0]), quick=True)
        """
    )
    result = run(inner)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*check_gradient(wrong_cube, jnp.array([[]1.0, 2.0]), quick=True)",
            "E*WrongGradientError: wrong_cube: the gradient is wrong",
            "E*cotangent of x: *",
        ]
    )
    assert "report.raise_if_wrong" not in result.stdout.str()  # the traceback ends in the test


def test_the_fixture_where_nothing_is_decided(inner: pytest.Pytester) -> None:
    inner.makepyfile(
        """
        import pytest
        from functional_bp.gradcheck import check as checker
        from functional_bp.gradcheck.report import Report
        @pytest.fixture(autouse=True)
        def stand_in(monkeypatch):
            report = Report("f", "inconclusive", reasons=("nothing settled",))
            monkeypatch.setattr(checker, "check", lambda *args, **options: report)
        def test_open(check_gradient):
            assert check_gradient(abs, 1.0).verdict == "inconclusive"
        def test_strict(check_gradient):
            check_gradient(abs, 1.0, inconclusive=True)
        """
    )
    result = run(inner)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["E*WrongGradientError: f: not decided", "E*nothing settled"])


# The option


def test_without_the_option_nothing_is_collected(inner: pytest.Pytester) -> None:
    inner.makepyfile(cubes=CUBES, test_one="def test_one(): pass\n")
    run(inner).assert_outcomes(passed=1)


def test_marks_are_tests(inner: pytest.Pytester) -> None:
    inner.makepyfile(cubes=CUBES, test_one="def test_one(): pass\n", other="raise OSError\n")
    result = run(inner, "--gradients", "-v")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines_random(
        [
            "cubes.py::right_cube PASSED*",
            "cubes.py::wrong_cube FAILED*",
            "test_one.py::test_one PASSED*",
            "*cubes:wrong_cube",
            "✗  cotangent of x *",
            "✗ cotangent of x: *",
            "✗ the gradient is wrong: *",
        ]
    )
    assert "Traceback" not in result.stdout.str()


def test_one_mark_by_its_name(inner: pytest.Pytester) -> None:
    inner.makepyfile(cubes=CUBES)
    run(inner, "--gradients", "cubes.py::right_cube").assert_outcomes(passed=1)
    run(inner, "--gradients", "-k", "wrong", "cubes.py").assert_outcomes(failed=1, deselected=1)


def test_marks_in_test_files_and_packages(inner: pytest.Pytester) -> None:
    package = inner.mkpydir("kit")
    (package / "cubes.py").write_text(CUBES)
    inner.makepyfile(
        test_cubes=CUBES.replace("2 * y_bar", "3 * y_bar") + "\ndef test_import():\n"
        "    import test_cubes\n    assert test_cubes.right_cube is right_cube\n"
    )
    run(inner, "--gradients").assert_outcomes(passed=4, failed=1)


def test_what_is_not_decided_is_skipped_with_its_reasons(inner: pytest.Pytester) -> None:
    inner.makeconftest(
        """
        from functional_bp.gradcheck import check as checker
        from functional_bp.gradcheck.report import Report
        report = Report("f", "inconclusive", reasons=("nothing settled",))
        checker.check = lambda *args, **options: report
        """
    )
    inner.makepyfile(cubes=CUBES)
    result = run(inner, "--gradients", "-rs", "cubes.py")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(["*not decided: nothing settled*"])


def test_errors_are_told_in_short(inner: pytest.Pytester) -> None:
    inner.makepyfile(
        no_inputs="import functional_bp as bp\n@bp.checked()\ndef f(x, y): return x\n",
        broken="import functional_bp as bp\nbp.checked\nimport no_such_library\n",
    )
    result = run(inner, "--gradients", "no_inputs.py")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["no_inputs:f: no inputs to check it on", "*the signature f(x, y)"])
    result = run(inner, "--gradients", "--ignore=no_inputs.py")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*broken.py cannot be imported", "*No module named 'no_such*"])
    assert "Traceback" not in result.stdout.str()


def test_an_exception_of_another_kind_keeps_its_traceback(inner: pytest.Pytester) -> None:
    inner.makepyfile(
        raising="import functional_bp as bp\n"
        "bp.checked(lambda: 1 / 0)((lambda x: (x, x), lambda x, y_bar: (y_bar,)))\n"
    )
    result = run(inner, "--gradients", "raising.py")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E   ZeroDivisionError: division by zero", "raising.py:2: *"])


# What it costs


def test_it_costs_nothing_until_it_is_used(inner: pytest.Pytester) -> None:
    inner.makepyfile(
        cubes="# checked\nimport functional_bp as bp\nbp.checked(1.0)(abs)\n",
        test_one="import sys\ndef test_one():\n"
        "    assert 'functional_bp.gradcheck.plugin' in sys.modules\n"
        "    assert not {'jax', 'numpy', 'rich', 'functional_bp.errors'} & set(sys.modules)\n",
    )
    run(inner).assert_outcomes(passed=1)


def test_the_entry_point_names_the_plugin() -> None:
    import tomllib

    project = tomllib.loads((Path(ROOT) / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"functional_bp": PLUGIN}
    module, _, name = f"{PLUGIN}:pytest_addoption".partition(":")
    assert callable(getattr(importlib.import_module(module), name))
