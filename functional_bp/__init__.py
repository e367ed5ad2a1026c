"""Backpropagation that a person can read, check and scale."""

from functional_bp.rule import rule as rule
from functional_bp.rule import rules as _registry
from functional_bp.transforms import grad as grad
from functional_bp.transforms import value_and_grad as value_and_grad
from functional_bp.transforms import vjp as vjp
from functional_bp import rules as _chapters  # registers the rules

rules = _registry
