"""The computational graph of a function: traced, named, measured, printed."""

from functional_bp.graph.graph import Equation as Equation
from functional_bp.graph.graph import Graph as Graph
from functional_bp.graph.graph import Nested as Nested
from functional_bp.graph.graph import RuleOf as RuleOf
from functional_bp.graph.graph import UnknownVariableError as UnknownVariableError
from functional_bp.graph.graph import Variable as Variable
from functional_bp.graph.graph import Visit as Visit
from functional_bp.graph.trace import name as name
from functional_bp.graph.trace import trace as trace
