"""Every primitive of the installed JAX is covered by a rule, or it is said why not."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import sys
from pathlib import Path

import jax
import pytest
from jax.extend.core import Primitive
from jax.interpreters import ad

import functional_bp as bp
from functional_bp.engine.rule import Rule

CENSUS = json.loads((Path(__file__).parents[1] / "data" / "primitives.json").read_text())
ROWS = {row["name"]: row for row in CENSUS["tier 1, in people's graphs"]}

# Kernel languages for one kind of device; they need that device's compilers to import.
KERNELS = ("pallas", "cudnn", "mosaic", "triton", "tpu", "test", "thunky")


def installed() -> dict[str, Primitive]:
    """Every primitive that the installed JAX defines outside kernel languages, by name."""
    # The census is of all there is, public or not: hence the walk below the private package.
    root = importlib.import_module("jax._src")
    for module in pkgutil.walk_packages(root.__path__, root.__name__ + "."):
        if not any(word in module.name for word in KERNELS):
            try:
                importlib.import_module(module.name)
            except ImportError:  # parts with dependencies that are not installed
                continue
    modules = [m for name, m in list(sys.modules.items()) if name.split(".")[0] == "jax"]
    values = [v for module in modules for v in list(vars(module).values())]
    return {v.name: v for v in values if isinstance(v, Primitive)}


LIVE = installed()


def needing_a_rule(name: str) -> bool:
    if name in ROWS:
        return name not in CENSUS["without a rule"]
    return CENSUS["newer than the census"].get(name) == "rule"


def test_the_walk_finds_the_public_primitives() -> None:
    public = vars(importlib.import_module("jax.extend.core.primitives")).values()
    missing = {v.name for v in public if isinstance(v, Primitive)} - set(LIVE)
    assert not missing


def unknown_primitives(live: dict[str, Primitive]) -> list[str]:
    """Names that are in no list of the census."""
    known = {*ROWS, *CENSUS["newer than the census"]}
    known |= {*CENSUS["tier 2, internal"], *CENSUS["tier 3, kernels and sparse"]}
    families = tuple(CENSUS["newer families"])
    own = {p.name for p in bp.rules if not p.__class__.__module__.startswith("jax")}
    return sorted(name for name in set(live) - known - own if not name.startswith(families))


def uncovered_primitives(live: dict[str, Primitive]) -> list[str]:
    """Tier-1 names for which there is neither a rule nor a reason."""
    covered = {p.name for p in bp.rules}
    return sorted(name for name in live if needing_a_rule(name) and name not in covered)


def test_jax_brings_no_primitive_that_the_census_does_not_know() -> None:
    found = unknown_primitives(LIVE)
    assert not found, f"JAX {jax.__version__} brings {found}: write rules, or add to the census"


def test_every_primitive_is_covered_or_declared() -> None:
    found = uncovered_primitives(LIVE)
    assert not found, f"{len(found)} primitives have neither rule nor reason: {', '.join(found)}"


def test_a_primitive_without_a_rule_would_be_noticed() -> None:
    live = {**LIVE, "brand_new": Primitive("brand_new")}
    assert unknown_primitives(live) == [*unknown_primitives(LIVE), "brand_new"]


def test_reasons_are_not_given_for_primitives_that_have_a_rule() -> None:
    covered = {p.name for p in bp.rules}
    assert not covered & set(CENSUS["without a rule"])


def test_newer_primitives_are_dealt_with_as_said() -> None:
    """``rule`` itself is checked with all others; here, that JAX has, or has no, rule for one."""
    for name, how in CENSUS["newer than the census"].items():
        if name in LIVE and how != "rule":
            has_rule = LIVE[name] in ad.primitive_jvps
            assert has_rule == ("registered with JAX" in how), f"{name}: {how}"


@pytest.mark.parametrize("status", ["zero", "n/a"])
def test_operations_without_a_derivative_are_declared_so(status: str) -> None:
    kinds = {p.name: rule.kind for p, rule in bp.rules.items()}
    expected = {"piecewise constant", "no tangent space", "structural"}
    wrong = [
        name
        for name, row in ROWS.items()
        if row["status"] == status
        and name in kinds
        and kinds[name] not in expected
        and name not in CENSUS["differentiated beyond JAX"]
    ]
    assert not wrong


def every_rule() -> list[object]:
    return [pytest.param(rule, id=p.name) for p, rule in bp.rules.items()]


@pytest.mark.parametrize("rule", every_rule())
def test_each_rule_says_what_it_is(rule: Rule) -> None:
    assert rule.derivation.strip(), "no derivation: give why=..., or docstrings to its pullbacks"
    reason = CENSUS["without cases"].get(rule.primitive.name)
    assert rule.cases or reason, "no cases: give inputs that it is tested on"
    assert Path(rule.file).is_file() and rule.line > 0, "no source line"
    assert Path(rule.file).parent.name == "vjps"


def test_each_rule_stands_where_it_says() -> None:
    forms = "rule|pointwise|linear|higher_order|piecewise_constant|no_tangent_space"
    for primitive, rule in bp.rules.items():
        line = Path(rule.file).read_text().splitlines()[rule.line - 1]
        assert re.search(rf"\b({forms})\(", line), f"{primitive.name}: {rule.file}:{rule.line}"
