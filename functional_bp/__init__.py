"""Backpropagation for JAX that a person can read, check and scale.

A name is imported when it is first used, so that ``import functional_bp`` alone loads nothing:
the command line's help and the pytest plugin do without JAX.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from functional_bp.check.checker import check as check
    from functional_bp.check.marks import checked as checked
    from functional_bp.check.report import Report as Report
    from functional_bp.check.steps import check_steps as check_steps
    from functional_bp.explain.cotangents import cotangents as cotangents
    from functional_bp.explain.explanation import Explanation as Explanation
    from functional_bp.explain.explanation import explain as explain
    from functional_bp.graph import Graph as Graph
    from functional_bp.graph import name as name
    from functional_bp.graph import trace as trace
    from functional_bp.jacobians import hessian as hessian
    from functional_bp.jacobians import hvp as hvp
    from functional_bp.jacobians import jacfwd as jacfwd
    from functional_bp.jacobians import jacobian as jacobian
    from functional_bp.jacobians import jacrev as jacrev
    from functional_bp.jacobians import jvp as jvp
    from functional_bp.jacobians import linearize as linearize
    from functional_bp.operation import operation as operation
    from functional_bp.rule import rule as rule
    from functional_bp.rule import rules as rules
    from functional_bp.transforms import fwd_and_bwd as fwd_and_bwd
    from functional_bp.transforms import grad as grad
    from functional_bp.transforms import value_and_grad as value_and_grad
    from functional_bp.transforms import vjp as vjp

# The public names, by the module that they come from; ``tests/test_import.py`` compares.
_HOMES = {
    "check.checker": ("check",),
    "check.marks": ("checked",),
    "check.report": ("Report",),
    "check.steps": ("check_steps",),
    "explain.cotangents": ("cotangents",),
    "explain.explanation": ("Explanation", "explain"),
    "graph": ("Graph", "name", "trace"),
    "jacobians": ("hessian", "hvp", "jacfwd", "jacobian", "jacrev", "jvp", "linearize"),
    "operation": ("operation",),
    "rule": ("rule", "rules"),
    "transforms": ("fwd_and_bwd", "grad", "value_and_grad", "vjp"),
}
_HOME = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names}
_WITHOUT_JAX = {"checked", "Report"}
_MODULES = ("errors", "train")

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _WITHOUT_JAX:
        importlib.import_module(f"{__name__}.rules")  # registers them, before a person's own
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})


class _Package(types.ModuleType):
    """This package, where ``rules``, ``check`` and ``explain`` mean the registry and functions.

    To import ``functional_bp.check.report`` would otherwise set the attribute ``check`` to the
    folder of that name. ``from functional_bp.check import report`` works as ever.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
