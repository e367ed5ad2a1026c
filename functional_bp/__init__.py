"""Backpropagation that a person can read, check and scale."""

from functional_bp import rules as _chapters  # registers the rules
from functional_bp.graph import Graph as Graph
from functional_bp.graph import name as name
from functional_bp.graph import trace as trace
from functional_bp.jacobians import hessian as hessian
from functional_bp.jacobians import hvp as hvp
from functional_bp.jacobians import jacfwd as jacfwd
from functional_bp.jacobians import jacrev as jacrev
from functional_bp.jacobians import jvp as jvp
from functional_bp.jacobians import linearize as linearize
from functional_bp.operation import operation as operation
from functional_bp.rule import rule as rule
from functional_bp.rule import rules as _registry
from functional_bp.transforms import grad as grad
from functional_bp.transforms import value_and_grad as value_and_grad
from functional_bp.transforms import vjp as vjp

rules = _registry  # the mapping; the chapters stay importable as functional_bp.rules.<chapter>
