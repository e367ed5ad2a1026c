"""Every message: what failed, where, what was got, what was expected, what to do."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from planted import planted, primitive_of

import functional_bp as bp
from functional_bp.errors import (
    BackpropError,
    CotangentError,
    Message,
    MissingRuleError,
    NonFiniteError,
    NotDifferentiableError,
    RuleError,
    StrictError,
    WrongGradientError,
    compose,
    describe,
)

X = jnp.arange(3, dtype=jnp.float32)

mystery_p = primitive_of("mystery", lambda x: x * 2, lambda x: x)


def mystery(x: Any) -> Any:
    return mystery_p.bind(x)  # HERE


HERE = next(
    number
    for number, line in enumerate(Path(__file__).read_text().splitlines(), start=1)
    if line.endswith("# HERE")
)


def message(kind: type[BaseException], call: Any) -> str:
    """The message of the error that ``call`` raises, notes included."""
    with pytest.raises(kind) as caught:
        call()
    return "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


def mentions(text: str, *parts: str) -> None:
    for part in parts:
        assert part in text, f"{part!r} is not in:\n{text}"


# --- operations without a rule -------------------------------------------------------------------


def test_a_missing_rule_names_the_persons_line_and_how_to_write_it() -> None:
    text = message(MissingRuleError, lambda: bp.grad(lambda x: jnp.sum(mystery(x)))(X))
    mentions(text, "'mystery'", f"test_errors.py:{HERE}", "f32[3]", "bp.rule(", "stop_gradient")


def test_the_advice_for_a_missing_rule_works() -> None:
    with planted(mystery_p, "x0 -> y", x0=lambda y_bar: 2 * y_bar):
        np.testing.assert_array_equal(bp.grad(lambda x: jnp.sum(mystery(x)))(X), 2 * np.ones(3))
    stopped = lambda x: jnp.sum(x * mystery(jax.lax.stop_gradient(x)))
    np.testing.assert_array_equal(bp.grad(stopped)(X), 2 * np.asarray(X))


def test_a_missing_rule_inside_a_nested_graph_names_the_same_line() -> None:
    nested = {
        "jit": jax.jit(mystery),
        "scan": lambda x: lax.scan(lambda c, _: (mystery(c), None), x, length=2)[0],
        "cond": lambda x: lax.cond(x[0] < 1, mystery, lambda x: x, x),
        "remat": jax.checkpoint(mystery),
    }
    for function in nested.values():
        call = lambda function=function: bp.grad(lambda x: jnp.sum(function(x)))(X)
        mentions(message(MissingRuleError, call), "'mystery'", f"test_errors.py:{HERE}")


def test_an_operation_off_the_way_to_the_gradient_needs_no_rule() -> None:
    function = lambda x, y: jnp.sum(x) + jnp.sum(mystery(y))
    np.testing.assert_array_equal(bp.grad(function)(X, X), np.ones(3))


def foreign_operation() -> Any:
    """A third party's operation: its author registered a derivative with JAX alone."""
    from jax.interpreters import ad

    foreign_p = primitive_of("foreign", lambda x: x * 3, lambda x: x)
    ad.deflinear(foreign_p, lambda bar: [bar * 3])
    return foreign_p.bind


def test_strict_refuses_a_rule_that_is_not_ours() -> None:
    foreign = foreign_operation()
    function = lambda x: jnp.sum(foreign(x))
    np.testing.assert_array_equal(bp.grad(function)(X), jax.grad(function)(X))
    text = message(StrictError, lambda: bp.grad(function, strict=True)(X))
    mentions(text, "strict=True", "'foreign'", "test_errors.py", "bp.rule", "leave strict out")


# --- what grad is asked for ----------------------------------------------------------------------


def test_a_function_that_is_not_scalar() -> None:
    def doubled(x: Any) -> Any:
        return 2 * x

    text = message(NotDifferentiableError, lambda: bp.grad(doubled)(X))
    mentions(text, "scalar-output", "doubled", "f32[3]", "()", "sum", "jacrev")


def test_a_function_that_returns_several_values_or_none() -> None:
    mentions(message(NotDifferentiableError, lambda: bp.grad(lambda x: (x[0], x[1]))(X)), "f32[]")
    mentions(message(NotDifferentiableError, lambda: bp.grad(lambda x: None)(X)), "scalar-output")


def test_integer_and_boolean_inputs() -> None:
    text = message(NotDifferentiableError, lambda: bp.grad(lambda n: 1.0 * n)(3))
    mentions(text, "real- or complex-valued", "int", "allow_int=True", "float")
    tree = {"mask": jnp.array([True]), "x": X}
    text = message(NotDifferentiableError, lambda: bp.grad(lambda t: jnp.sum(t["x"]))(tree))
    mentions(text, "mask", "bool[1]")


def test_integer_output() -> None:
    text = message(NotDifferentiableError, lambda: bp.grad(lambda x: jnp.argmax(x))(X))
    mentions(text, "real output", "float dtype")


def test_complex_output_without_holomorphic() -> None:
    text = message(NotDifferentiableError, lambda: bp.grad(lambda x: x * 1j)(1.0))
    mentions(text, "real output", "holomorphic=True")


def test_holomorphic_with_real_input() -> None:
    text = message(NotDifferentiableError, lambda: bp.grad(lambda x: x, holomorphic=True)(1.0))
    mentions(text, "holomorphic=True", "complex inputs")


def test_an_argument_that_is_not_an_array() -> None:
    text = message(NotDifferentiableError, lambda: bp.grad(lambda s: 1.0)("text"))
    mentions(text, "not an array", "'text'", "argnums")


@pytest.mark.parametrize(
    ("argnums", "error"), [(2, TypeError), (-3, ValueError), ((0, 5), TypeError)]
)
def test_argnums_out_of_range(argnums: Any, error: Any) -> None:
    with pytest.raises(error):
        jax.grad(lambda x, y: x * y, argnums)(1.0, 2.0)
    text = message(error, lambda: bp.grad(lambda x, y: x * y, argnums)(1.0, 2.0))
    mentions(text, "argnums", "2 positional arguments")


@pytest.mark.parametrize("argnums", [(0, 0), (0, -2)])
def test_argnums_that_name_an_argument_twice(argnums: Any) -> None:
    text = message(TypeError, lambda: bp.grad(lambda x, y: x * y, argnums)(1.0, 2.0))
    mentions(text, "twice", "each argument once")


def test_argnums_of_a_keyword_argument() -> None:
    text = message(TypeError, lambda: bp.grad(lambda x: x)(x=1.0))
    mentions(text, "0 positional arguments", "by position")


@pytest.mark.parametrize("wrong", [lambda x: x, lambda x: (x, x, x), lambda x: {"a": x}])
def test_has_aux_without_a_pair(wrong: Any) -> None:
    mentions(message(TypeError, lambda: bp.grad(wrong, has_aux=True)(1.0)), "has_aux", "pair")
    mentions(message(TypeError, lambda: bp.vjp(wrong, 1.0, has_aux=True)), "has_aux", "pair")


# --- the pullback's argument ---------------------------------------------------------------------


def two_outputs() -> Any:
    return bp.vjp(lambda x: {"y": 2 * x, "n": jnp.argmax(x)}, X)[1]


def test_cotangent_with_the_wrong_structure() -> None:
    text = message(CotangentError, lambda: two_outputs()([X]))
    mentions(text, "structure", "'y'", "expected")


def test_cotangent_with_the_wrong_shape() -> None:
    text = message(CotangentError, lambda: bp.vjp(jnp.sin, X)[1](jnp.ones(4, jnp.float32)))
    mentions(text, "wrong shape", "f32[4]", "f32[3]")


def test_cotangent_with_the_wrong_dtype() -> None:
    text = message(CotangentError, lambda: bp.vjp(jnp.sin, X)[1](jnp.ones(3, jnp.bfloat16)))
    mentions(text, "dtype", "bf16[3]", "f32[3]")


def test_cotangent_of_an_integer_output_is_float0() -> None:
    pullback = two_outputs()
    text = message(CotangentError, lambda: pullback({"y": X, "n": jnp.ones(())}))
    mentions(text, "float0", "['n']")
    pullback({"y": X, "n": np.zeros((), jax.dtypes.float0)})


def test_a_number_is_a_cotangent_of_a_scalar() -> None:
    assert bp.vjp(jnp.sin, 0.0)[1](2.0)[0] == 2.0


# --- rules that are written wrongly --------------------------------------------------------------


def gradient_with(**pullback: Any) -> Any:
    """The gradient through ``mystery`` with a planted rule."""

    def call() -> Any:
        with planted(mystery_p, "x -> y", **pullback):
            return bp.grad(lambda x: jnp.sum(mystery(x)))(X)

    return call


def test_rule_that_returns_the_wrong_shape() -> None:
    text = message(RuleError, gradient_with(x=lambda y_bar: y_bar[:2]))
    mentions(text, "'mystery'", "shape", "planted.py", "f32[2]", "f32[3]")


def test_rule_that_returns_the_wrong_dtype() -> None:
    text = message(RuleError, gradient_with(x=lambda y_bar: y_bar.astype(jnp.int32)))
    mentions(text, "dtype", "i32[3]", "f32[3]")
    text = message(RuleError, gradient_with(x=lambda y_bar: y_bar * 1j))
    mentions(text, "dtype", "c64[3]")


def test_rule_that_returns_no_array() -> None:
    text = message(RuleError, gradient_with(x=lambda y_bar: [y_bar]))
    mentions(text, "not an array", "list")
    mentions(message(RuleError, gradient_with(x=lambda y_bar: "text")), "not an array", "str")


def test_joint_rule_that_returns_the_wrong_number_or_names() -> None:
    for wrong in (lambda y_bar: (y_bar,), lambda y_bar: {"z": y_bar}, lambda y_bar: y_bar):
        text = message(RuleError, gradient_with(joint=wrong))
        mentions(text, "joint rule", "'mystery'", "dict", "x")


def test_rule_that_returns_none_says_zero() -> None:
    np.testing.assert_array_equal(gradient_with(x=lambda y_bar: None)(), np.zeros(3))


BAD_DECLARATIONS = {
    "no arrow": ("x, y", {}, ['has no "->"']),
    "unknown operand": ("x -> y", {"z": lambda y_bar: y_bar}, ["'z'", "not an operand"]),
    "unknown parameter": ("x -> y", {"x": lambda y_bar, w: w}, ["'w'", "y_bar", "keyword-only"]),
    "unknown cotangent": ("x -> y", {"x": lambda z_bar: z_bar}, ["'z_bar'", "y_bar"]),
    "two stars": ("*x, *y -> z", {}, ["more than one starred"]),
    "name twice": ("x, x -> y", {}, ["twice"]),
    "pushforward of two": ("x, z -> y", {"pushforward": lambda x_dot: x_dot}, ["one operand"]),
    "unknown tangent": ("x -> y", {"pushforward": lambda y_bar: y_bar}, ["'y_bar'", "x_dot"]),
}


@pytest.mark.parametrize("name", BAD_DECLARATIONS)
def test_declaration_that_cannot_be(name: str) -> None:
    signature, pullbacks, parts = BAD_DECLARATIONS[name]
    text = message(RuleError, lambda: bp.rule(mystery_p, signature, **pullbacks))
    mentions(text, "mystery", *parts)
    assert mystery_p not in bp.rules


def test_signature_with_the_wrong_number_of_operands() -> None:
    def call() -> Any:
        with planted(mystery_p, "x, w -> y", x=lambda y_bar: y_bar):
            return bp.grad(lambda x: jnp.sum(mystery(x)))(X)

    mentions(message(RuleError, call), "'mystery'", "2 operands", "1")


def test_rule_that_asks_for_a_parameter_that_the_operation_has_not() -> None:
    def axis_rule(y_bar: Any, *, axis: int) -> Any:
        return y_bar

    mentions(message(RuleError, gradient_with(x=axis_rule)), "'mystery'", "'axis'")


# --- tracers ------------------------------------------------------------------------------------


def test_python_branch_on_a_traced_value() -> None:
    branching = lambda x: x if x > 0 else -x
    error = jax.errors.TracerBoolConversionError
    for grad in (jax.jit(bp.grad(branching)), bp.grad(branching, staged=True)):
        mentions(message(error, lambda: grad(1.0)), "lax.cond", "jnp.where", "argnums")  # noqa: B023
    assert bp.grad(branching)(-2.0) == -1.0  # outside of jit, Python sees the value


def test_conversion_of_a_traced_value_to_numpy_or_a_number() -> None:
    error = jax.errors.TracerArrayConversionError
    text = message(error, lambda: bp.grad(lambda x: np.sin(x) * x)(1.0))
    mentions(text, "gradient would be lost", "jax.numpy", "stop_gradient")
    staged = message(error, lambda: jax.jit(bp.grad(lambda x: np.sin(x) * x))(1.0))
    mentions(staged, "Inside jax.jit", "traces the function to a graph")
    number = jax.errors.ConcretizationTypeError
    text = message(number, lambda: jax.jit(bp.grad(lambda x: float(x) * x))(1.0))
    mentions(text, "Inside jax.jit", "traces the function to a graph")


def test_a_leaked_tracer() -> None:
    kept: list[Any] = []

    def leaky(x: Any) -> Any:
        kept.append(jnp.sin(x))
        return jnp.sum(x)

    bp.grad(leaky)(1.0)
    text = message(jax.errors.UnexpectedTracerError, lambda: bp.grad(lambda x: x * kept[0])(1.0))
    mentions(text, "has_aux=True", "another call")


def test_loop_that_runs_longer_than_its_bound() -> None:
    def halved(x: Any) -> Any:
        return lax.while_loop(lambda x: x > 1, lambda x: x / 2, x)

    text = message(BackpropError, lambda: bp.grad(halved)(100.0))
    mentions(text, "max_steps", "test_errors.py")


# --- how messages look --------------------------------------------------------------------------


def test_arrays_are_described_by_dtype_and_shape() -> None:
    assert describe(jnp.ones((3, 5), jnp.float32)) == "f32[3,5]"
    assert describe(jnp.asarray(1, jnp.bfloat16)) == "bf16[]"
    assert describe(np.zeros(2, bool)) == "bool[2]"
    assert describe(np.zeros(2, jax.dtypes.float0)) == "float0[2]"
    assert describe(2.5) == "float 2.5"
    assert describe(object()) == "object"


def test_a_message_has_one_thing_a_line() -> None:
    text = message(CotangentError, lambda: bp.vjp(jnp.sin, X)[1](jnp.ones(4, jnp.float32)))
    first, *rest = text.splitlines()
    assert first and not first.startswith(" ")
    assert all(re.match(r"  (at|got|expected|to do): ", line) for line in rest)


def test_every_exception_of_ours_has_one_base() -> None:
    kinds = (MissingRuleError, RuleError, NotDifferentiableError, CotangentError, StrictError)
    assert all(issubclass(kind, BackpropError) and kind.__doc__ for kind in kinds)
    assert issubclass(NotDifferentiableError, TypeError) and issubclass(CotangentError, ValueError)


# --- what an error knows -------------------------------------------------------------------------

FIELDS = {
    "what": "h stands inside a loop", "where": "model.py:3", "got": "scan", "expected": "an array",
    "do": "write the loop out: unroll=True; or name what comes out",
}  # fmt: skip
MESSAGE = compose(
    **(FIELDS | {"do": "write the loop out: {unroll}; or name what comes out"}),
    unroll="unroll=True",
)


def kinds(base: type[BackpropError] = BackpropError) -> Iterator[type[BackpropError]]:
    """All kinds of errors of the package that are imported by now."""
    yield base
    for kind in base.__subclasses__():
        if kind.__module__.startswith("functional_bp."):
            yield from kinds(kind)


def fields(error: BackpropError | Message) -> dict[str, str]:
    return {name: getattr(error, name) for name in FIELDS}


def test_an_error_has_the_parts_of_its_message() -> None:
    with pytest.raises(CotangentError) as caught:
        bp.vjp(jnp.sin, X)[1](jnp.ones(4, jnp.float32))
    error = caught.value
    assert error.got == "f32[4]" and error.expected.startswith("f32[3]") and not error.where
    assert "wrong shape" in error.what and "f32" not in error.what
    text = f"{error.what}\n  got:      {error.got}\n  expected: {error.expected}"
    assert str(error) == text + (f"\n  to do:    {error.do}" if error.do else "")
    assert fields(BackpropError("plain")) == dict.fromkeys(FIELDS, "") | {"what": "plain"}


def test_copied_and_pickled_errors_are_as_they_were() -> None:
    for kind in kinds():
        error = kind(MESSAGE)
        error.add_note("a note")
        copies = [copy.copy(error), copy.deepcopy(error)]
        copies += [pickle.loads(pickle.dumps(error, protocol)) for protocol in range(6)]
        for other in copies:
            assert type(other) is kind and str(other) == str(error) and other.args == error.args
            assert fields(other) == FIELDS and other.__notes__ == ["a note"]
            assert "--unroll" in other.message.reworded({"unroll": "--unroll"}).do
        assert str(error).startswith(MESSAGE)


def test_an_error_composes_its_message_of_parts() -> None:
    error = NonFiniteError("it failed", "log_of: ln 0", got="a", do="say {so}", so="b")
    assert error.message == compose("it failed", got="a", do="say b")
    assert (error.what, error.got, error.do, error.finding) == (
        "it failed",
        "a",
        "say b",
        "log_of: ln 0",
    )


def test_what_an_error_carries_besides_is_copied_too() -> None:
    error = NonFiniteError(MESSAGE, "log_of: ln 0")
    error.state, error.history = {"w": 1.0}, [2.0]
    report = WrongGradientError("wrong", report=("a", "report"))
    for again in (copy.copy, lambda e: pickle.loads(pickle.dumps(e))):
        assert (
            vars(again(error)) == vars(error) and str(again(error)) == f"{MESSAGE}\n\nlog_of: ln 0"
        )
        assert again(report).report == ("a", "report")


def test_what_cannot_be_pickled_travels_as_its_text() -> None:
    error = NonFiniteError(MESSAGE, explanation := bp.explain(lambda x: jnp.sum(x * x), X))
    assert copy.copy(error).finding is explanation
    assert pickle.loads(pickle.dumps(error)).finding == str(explanation)


def test_errors_are_caught_as_what_jax_or_python_raises() -> None:
    for python in (ValueError, TypeError):
        with pytest.raises(python):
            bp.vjp(jnp.sin, X)[1](jnp.ones(4, jnp.float32))
    with pytest.raises(KeyError, match="^no variable of <lambda> is called y"):
        _ = bp.trace(lambda x: x, X)["y"]


def test_a_message_is_reworded_by_arguments_and_not_by_its_text() -> None:
    assert MESSAGE.reworded({}) == MESSAGE
    other = MESSAGE.reworded({"unroll": "--unroll", "depth": "--depth 0"})
    assert fields(other) == FIELDS | {"do": "write the loop out: --unroll; or name what comes out"}
    plain = compose("unroll=True {unroll}", do="say {so}")
    assert plain.reworded({"unroll": "--unroll"}) == plain
    assert plain == "unroll=True {unroll}\n  to do:    say {so}"
