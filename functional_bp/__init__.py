"""Backpropagation for JAX that a person can read, check and scale.

A name is imported when it is first used, so that ``import functional_bp`` alone loads nothing:
the command line's help and the pytest plugin do without JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from functional_bp.engine.jacobians import hessian as hessian
    from functional_bp.engine.jacobians import hvp as hvp
    from functional_bp.engine.jacobians import jacfwd as jacfwd
    from functional_bp.engine.jacobians import jacobian as jacobian
    from functional_bp.engine.jacobians import jacrev as jacrev
    from functional_bp.engine.jacobians import jvp as jvp
    from functional_bp.engine.jacobians import linearize as linearize
    from functional_bp.engine.operation import operation as operation
    from functional_bp.engine.rule import rule as rule
    from functional_bp.engine.rule import rules as rules
    from functional_bp.engine.transforms import fwd_and_bwd as fwd_and_bwd
    from functional_bp.engine.transforms import grad as grad
    from functional_bp.engine.transforms import value_and_grad as value_and_grad
    from functional_bp.engine.transforms import vjp as vjp
    from functional_bp.explanation.cotangents import cotangents as cotangents
    from functional_bp.explanation.explanation import Explanation as Explanation
    from functional_bp.explanation.explanation import explain as explain
    from functional_bp.gradcheck.check import check as check
    from functional_bp.gradcheck.marks import checked as checked
    from functional_bp.gradcheck.report import Report as Report
    from functional_bp.gradcheck.steps import check_steps as check_steps
    from functional_bp.graph import Graph as Graph
    from functional_bp.graph import name as name
    from functional_bp.graph import trace as trace
    from functional_bp.memory.footprint import Footprint as Footprint
    from functional_bp.memory.footprint import footprint as footprint
    from functional_bp.memory.orders import orders as orders
    from functional_bp.memory.recompute import recompute as recompute

# The public names, by the module that they come from; ``tests/test_import.py`` compares.
_HOMES = {
    "engine.jacobians": ("hessian", "hvp", "jacfwd", "jacobian", "jacrev", "jvp", "linearize"),
    "engine.operation": ("operation",),
    "engine.rule": ("rule", "rules"),
    "engine.transforms": ("fwd_and_bwd", "grad", "value_and_grad", "vjp"),
    "explanation.cotangents": ("cotangents",),
    "explanation.explanation": ("Explanation", "explain"),
    "gradcheck.check": ("check",),
    "gradcheck.marks": ("checked",),
    "gradcheck.report": ("Report",),
    "gradcheck.steps": ("check_steps",),
    "graph": ("Graph", "name", "trace"),
    "memory.footprint": ("Footprint", "footprint"),
    "memory.orders": ("orders",),
    "memory.recompute": ("recompute",),
}
_HOME = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names}
_WITHOUT_JAX = {"checked", "Report"}
_MODULES = ("errors", "shard", "train")

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _WITHOUT_JAX:
        importlib.import_module(f"{__name__}.vjps")  # registers them, before a person's own
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
