"""On what inputs ``functional-bp check`` checks, from options, files, marks or defaults."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from checked_package import shapes, target_of

from functional_bp.gradcheck import targets
from functional_bp.gradcheck.targets import Target


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
    inputs = targets.inputs_for(target_of(ops, name), shapes=given)
    assert shapes(inputs) == expected


def test_ranges_are_kept_and_the_seed_decides(ops: ModuleType) -> None:
    draw = lambda text, seed=0: targets.draw(text, np.random.default_rng(seed))
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
        inputs = targets.inputs_for(target_of(ops, "dense"), file=file)
        assert shapes(inputs) == ["float32[2, 3]", "float32[3, 4]", "float32[4]"]
    np.savez("nested.npz", **{"params/w": x, "params/deep/b": b})
    (params,) = targets.inputs_for(target_of(ops, "with_a_dictionary"), file="nested.npz")
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
    assert targets.inputs_for(target_of(ops, "softplus")) == expected


def test_marks_give_arrays_or_a_function_that_makes_them(ops: ModuleType) -> None:
    inputs = lambda *arguments: targets.inputs_for(
        Target("m:softplus", ops.softplus, ops, arguments)
    )
    assert inputs(1.0) == (1.0,) == inputs(lambda: (1.0,)) == inputs(lambda: 1.0)


def test_the_order_of_the_ways(ops: Any) -> None:
    np.savez("x.npz", x=np.zeros(7))
    ops.example_inputs = lambda: (np.zeros(4),)
    marked = Target("m:softplus", ops.softplus, ops, (np.zeros(5),))
    plain = Target("m:softplus", ops.softplus, ops)
    size = lambda target, **ways: targets.inputs_for(target, **ways)[0].size
    assert size(marked, file="x.npz", shapes=["x=f32[6]"]) == 7
    assert size(marked, shapes=["x=f32[6]"]) == 6
    assert size(marked) == 5
    assert size(plain) == 4


def test_defaults_of_all_arguments() -> None:
    every, some = (lambda x=1.5, axis=-1: x), (lambda x, axis=-1: x)
    assert targets.inputs_for(Target("m:f", every)) == (1.5, -1)
    ones = np.ones(2)
    assert shapes(targets.inputs_for(Target("m:f", lambda x=ones: x))) == ["float64[2]"]
    with pytest.raises(targets.InputsError, match="m:f: no inputs to check it on"):
        targets.inputs_for(Target("m:f", some))


def test_names_of_arguments_that_are_not_known() -> None:
    class Odd:
        __signature__ = "none"

        def __call__(self, x: Any) -> Any: ...

    with pytest.raises(targets.InputsError, match="names of its arguments are not known"):
        targets.inputs_for(Target("m:f", Odd()), shapes=["x=f32[3]"])


def test_jnp_is_used() -> None:
    assert isinstance(targets.draw("f32[2]", np.random.default_rng(0)), jnp.ndarray)
