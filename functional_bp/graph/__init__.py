"""The computational graph of a function: traced, named, measured, printed."""

from functional_bp.graph.parts import Equation as Equation
from functional_bp.graph.parts import Nested as Nested
from functional_bp.graph.parts import RuleOf as RuleOf
from functional_bp.graph.parts import Variable as Variable
from functional_bp.graph.trace import name as name
from functional_bp.graph.trace import trace as trace
from functional_bp.graph.view import Graph as Graph
from functional_bp.graph.view import UnknownVariableError as UnknownVariableError
from functional_bp.graph.view import Visit as Visit
