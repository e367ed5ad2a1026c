"""What ``functional-bp check`` checks: the gradients it finds by name, in modules and packages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import functional_bp as bp
from functional_bp.gradcheck import targets as collect
from functional_bp.gradcheck import targets as example_inputs


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
    declared = ("no tangent space", "piecewise constant")  # without a cotangent to derive
    derived = [rule for rule in bp.rules.values() if rule.kind not in declared]
    names = {target.short_name for target in found}
    assert {rule.primitive.name for rule in derived if rule.cases} <= names
    assert not [t for t in found if t.error or t.subject is None]


def test_rules_of_a_persons_own_file(ops: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text(
        "import functional_bp as bp\n"
        "from jax.extend.core import Primitive\n"
        "from functional_bp.engine.rule import case, real\n"
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


def test_a_lookup_without_module() -> None:
    with pytest.raises(collect.TargetError, match="write MODULE:NAME"):
        collect.lookup("loss")
