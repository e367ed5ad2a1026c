"""The corpus of ``bench check``: right gradients are right, and every fault is the one declared."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling import sampled

from benchmarks.__main__ import main
from benchmarks.corpus import Case, Operation, cases, load, operations
from benchmarks.corpus.declare import Fault, fault
from benchmarks.corpus.sources import edited
from benchmarks.rivals import (
    compare_with_vjp,
    cotangents,
    only_actives,
    random_like,
    rivals,
    widened,
)
from benchmarks.scores import score
from benchmarks.trials import OURS, Trial, checkers

# Relative to the cotangent of the largest argument: rounding of float64, with room for
# ill-conditioned inputs, and what a fault must exceed to be one.
ROUNDING = 1e-9
VISIBLE = 1e-7
# Kinds that a person causes by an edit of a backward pass; the others are of other origin.
CAUSED = {
    "sign", "factor", "mean or sum", "missing sum", "axis", "transpose", "permutation", "reversal",
    "off by one", "missing factor", "missing term", "extra term", "wrong operand",
    "wrong constant", "wrong function", "region", "repeats", "border", "entries", "not finite",
    "cotangent ignored", "not linear", "structure", "dtype", "second order", "hidden state",
    "not deterministic", "jit", "vmap", "scan", "sharding", "precision", "overflow",
}  # fmt: skip
SAMPLE = ("silu", "modulate")  # the others take minutes

by_operation = pytest.mark.parametrize("operation", operations(), ids=lambda op: op.name)


def distance(claimed: Any, true: Any) -> float:
    """‖claimed − true‖ over the arguments, relative to the true one; infinite if not finite."""
    pairs = list(zip(map(np.asarray, claimed), map(np.asarray, true), strict=True))
    with np.errstate(all="ignore"):
        errors = [float(np.linalg.norm((a - b).ravel())) for a, b in pairs]
        scales = [float(np.linalg.norm(b.ravel())) for _, b in pairs]
    if not np.all(np.isfinite(errors)):
        return np.inf
    floor = 1e-12 * max(scales) + 1e-300
    return max(e / (s + floor) for e, s in zip(errors, scales))


def derivative(function: Any, args: Any, order: int, seed: int) -> list[Any]:
    """Cotangents of the active arguments; at order 2 of their inner product with fixed weights."""
    if order == 1:
        return cotangents(function, args, seed)
    of_actives, actives = only_actives(function, args)

    def weighted(*actives: Any) -> Any:
        outs, pullback = jax.vjp(of_actives, *actives)
        bars = pullback(random_like(outs, seed))
        weights = random_like(bars, seed + 1)
        return sum(jnp.sum(jnp.real(bar * w)) for bar, w in zip(bars, weights))

    return list(jax.grad(weighted, tuple(range(len(actives))))(*actives))


@cache
def truth(case: Case, where: str, order: int, seed: int) -> tuple[Any, ...]:
    """The derivative of the reference, in float64."""
    args = widened(arguments(case, where))
    loaded = load(Case(case.operation.name, case.operation), folder())
    return tuple(derivative(loaded.reference, args, order, seed))


@cache
def folder() -> Path:
    """A folder for the edited modules, which pytest's own would not outlive a cache."""
    import tempfile

    return Path(tempfile.mkdtemp())


def arguments(case: Case, where: str) -> Any:
    """The given inputs, or those at which the fault shows."""
    if where == "elsewhere":
        assert case.fault is not None and case.fault.elsewhere is not None
        return case.fault.elsewhere(np.random.default_rng(0))
    return case.arguments()


def error(case: Case, where: str = "given", order: int = 1, seed: int = 0) -> float:
    """How far the case's gradient is from the truth in float64."""
    args = widened(arguments(case, where))
    claimed = derivative(load(case, folder()).function, args, order, seed)
    key = case if where == "elsewhere" else Case("", case.operation, inputs=case.inputs)
    return distance(claimed, truth(key, where, order, seed))


def faults_of(operation: Operation) -> list[Case]:
    return [c for c in cases() if c.operation is operation and c.fault is not None]


def test_the_corpus_is_as_large_as_it_has_to_be() -> None:
    kinds = Counter(case.fault.kind for case in cases() if case.fault is not None)
    families = [op for op in operations() if op.faults]
    assert sum(kinds.values()) >= 300 and len(families) >= 50
    assert sum(case.hard for case in cases()) >= 80
    assert CAUSED <= set(kinds)
    assert len({case.name for case in cases()}) == len(cases())


def test_faults_are_distinct() -> None:
    for operation in operations():
        edits = [fault.edits for fault in operation.faults]
        assert len(set(edits)) == len(edits), operation.name


@pytest.mark.parametrize("operation", sampled(operations(), 4), ids=lambda op: op.name)
def test_every_edit_applies_once_and_is_python(operation: Operation, tmp_path: Path) -> None:
    module = operation.module.rpartition(".")
    source = Path(__import__(operation.module, fromlist=module[2:]).__file__ or "").read_text()
    for fault_ in operation.faults:
        text, lines = edited(source, operation.name, fault_)
        assert text != source and lines
        compile(text, operation.name, "exec")
        assert set(fault_.arguments) <= argument_names(operation), fault_


def argument_names(operation: Operation) -> set[str]:
    """The names of the active leaves of the arguments, as a report has them."""
    import inspect

    function = load(Case(operation.name, operation), folder()).function
    names = list(inspect.signature(getattr(function, "fun", function)).parameters)
    leaves = jax.tree_util.tree_flatten_with_path(operation.draw(np.random.default_rng(0)))[0]
    return {names[path[0].idx] + jax.tree_util.keystr(path[1:]) for path, _ in leaves}


def test_an_edit_must_stand_once() -> None:
    source = "def f_bwd(x, y_bar):\n    return (y_bar + y_bar,)\n"
    for old in ("y_bar,)\n", "2.0"):
        with pytest.raises(ValueError, match=r"stands \d times .* expected once"):
            edited(source + source.replace("f_", "h_"), "f", fault("sign", "x", "y_bar", old))


def test_the_lines_are_those_of_the_edited_statement() -> None:
    source = "def f_bwd(x, y_bar):\n    a = 1.0\n    return (\n        a * y_bar,\n    )\n"
    text, lines = edited(source, "f", fault("sign", "x", "a * y_bar", "-a * y_bar"))
    assert lines == {3, 4, 5} and "-a * y_bar" in text
    two = fault("sign", "x", "a * y_bar", "-a * y_bar", ("a = 1.0", "b = 2.0\n    a = b"))
    assert edited(source, "f", two)[1] == {2, 3, 4, 5, 6}


def test_a_kind_must_be_known() -> None:
    with pytest.raises(ValueError, match="fault kind 'signs': expected one of"):
        fault("signs", "x", "a", "b")


@pytest.mark.parametrize("operation", sampled(operations(), 24), ids=lambda op: op.name)
def test_right_gradients_are_right(operation: Operation) -> None:
    case = Case(operation.name, operation)
    if operation.kink:  # another convention: right where nothing is equal or zero
        shifts = [np.float32(1e-3) * (k + 1) for k, _ in enumerate(case.arguments())]
        args = [x + shift * (1 + np.arange(x.size).reshape(x.shape))
                for x, shift in zip(case.arguments(), shifts)]  # fmt: skip
        loaded = load(case, folder())
        claimed, true = (cotangents(f, widened(args)) for f in (loaded.function, loaded.reference))
        assert distance(claimed, true) < ROUNDING
    else:
        assert error(case) < operation.tolerance


@pytest.mark.long
@by_operation
def test_right_gradients_are_right_on_hard_inputs(operation: Operation) -> None:
    for case in cases():
        if case.operation is operation and case.inputs and not case.kink:
            # Softmax where one class wins and the like: the largest entries count.
            assert error(case) < 1e-6 or largest_error(case) < ROUNDING, case.name


def largest_error(case: Case) -> float:
    """The largest difference over the largest cotangent of an output or an argument."""
    loaded, args = load(case, folder()), widened(case.arguments())
    claimed, true = (cotangents(f, args) for f in (loaded.function, loaded.reference))
    differences = [np.max(np.abs(np.asarray(a) - np.asarray(b))) for a, b in zip(claimed, true)]
    return float(max(differences))


@pytest.mark.parametrize("operation", [
    pytest.param(op, id=op.name, marks=() if op.name in SAMPLE else pytest.mark.long)
    for op in operations()
])  # fmt: skip
def test_faults_show_where_they_are_declared_to(operation: Operation) -> None:
    for case in faults_of(operation):
        shows = case.fault.shows if case.fault else ""
        if shows == "form":
            assert_malformed(case)
        elif shows == "calls":  # seen by repeating, jit or vmap; that it runs is seen here
            assert case.fault is not None
            assert case.fault.kind == "not deterministic" or error(case) < VISIBLE, case.name
        elif shows == "rounding":
            assert error(case) < 0.1, case.name  # float32 alone may show it
        elif shows == "second order":
            assert error(case) < ROUNDING, case.name
            assert error(case, order=2) > VISIBLE, case.name
        elif shows == "elsewhere":
            assert error(case) < ROUNDING, case.name
            assert error(case, "elsewhere") > VISIBLE, case.name
        else:
            # A scalar's cotangent has to be drawn negative for |ȳ| to show.
            assert any(error(case, seed=seed) > VISIBLE for seed in (0, 3, 1, 2, 4, 5)), case.name


def assert_malformed(case: Case) -> None:
    """Raises, or has a cotangent of another dtype, or that JAX fills up or casts."""
    function, args = load(case, folder()).function, case.arguments()
    assert case.fault is not None
    try:
        claimed = cotangents(function, args)
    except Exception:
        return
    assert case.fault.kind == "dtype", case.name
    actives = only_actives(function, args)[1]
    assert any(a.dtype != jnp.result_type(b) for a, b in zip(claimed, actives)), case.name


def test_a_wrong_right_one_would_be_seen() -> None:
    case = next(c for c in cases() if c.name == "layer_norm:sign")
    assert case.fault is not None and error(case) > 1e-2


def test_the_comparison_with_vjp_finds_a_fault_and_accepts_the_right_one() -> None:
    right, wrong = (
        next(c for c in cases() if c.name == name) for name in ("silu:right", "silu:sign")
    )
    for case, objects in ((right, False), (wrong, True)):
        loaded = load(case, folder())
        assert compare_with_vjp(loaded.function, case.arguments(), loaded.reference) is objects


@pytest.mark.parametrize("name", [name for name in rivals() if "grads" in name or "chex" in name])
def test_each_rival_finds_a_sign(name: str) -> None:
    rival = rivals()[name]
    assert rival is not None
    for case_name, objects in (("silu:right", False), ("silu:sign", True)):
        case = next(c for c in cases() if c.name == case_name)
        loaded = load(case, folder())
        assert rival(loaded.function, case.arguments(), loaded.reference) is objects


def scored(**objects: bool) -> dict[str, Any]:
    """The score of a checker that objects to these cases of one operation."""
    draw = lambda rng: (np.ones(1, np.float32),)
    declared = Fault(("sign",), ("x",), (("a", "b"),))
    operation = Operation("op", "module", draw, (declared,), also={"large": draw})
    made = [Case("wrong", operation, declared), Case("right", operation),
            Case("large", operation, inputs="large")]  # fmt: skip
    trials = [Trial("c", c.name, objects[c.name], kind_named=objects[c.name]) for c in made]
    return score(made, trials)


def test_a_score_counts_what_is_found_and_accused() -> None:
    good = scored(wrong=True, right=False, large=False)
    assert (good["found"], good["accused"], good["hard right"], good["missed"]) == (1, 0, 1, [])
    assert good["by kind"] == {"sign": (1, 1)} and good["kind named"] == 1
    missed = scored(wrong=False, right=False, large=True)
    assert (missed["found"], missed["accused"], missed["hard accused"]) == (0, 1, 1)
    assert missed["missed"] == ["wrong"] and missed["accused names"] == ["large"]


def test_what_objects_to_everything_finds_nothing() -> None:
    assert scored(wrong=True, right=True, large=True)["found"] == 0


def test_the_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--only", "silu:sign", "--only", "silu:right", "--checkers", "jax.vjp float32",
             "--json"]  # fmt: skip
    assert main(["check", *words]) == 0
    data = json.loads(capsys.readouterr().out)
    own = data["scores"]["jax.vjp float32"]
    assert (own["found"], own["faults"], own["right"]) == (1, 1, 2)
    assert {trial["case"] for trial in data["trials"]} > {"silu:sign", "silu:right"}


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--only", "silu:factor", "--checkers", "jax.vjp"]) == 0
    out = capsys.readouterr().out
    assert "jax.vjp float32" in out and "missed:\n  silu:factor" in out


def test_the_command_lists_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--list", "--limit", "7"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 7


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--only", "no_such_case"], "no case's name"),
        (["--checkers", "nobody"], "no checker"),
        (["--jobs", "0"], "--jobs"),
    ],
)
def test_called_wrongly(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *words]) == 2
    assert text in capsys.readouterr().err


def test_ours_comes_first_and_absent_checkers_are_known() -> None:
    assert list(checkers())[:2] == list(OURS) and "torch gradcheck" in checkers()
