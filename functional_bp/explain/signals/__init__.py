"""What is notable about gradients: dead, vanishing, exploding, not finite, underflowing.

``search`` compares, ``gates`` finds the operation that shuts a unit, ``findings`` is the result.
"""

from functional_bp.explain.signals.findings import Signal as Signal
from functional_bp.explain.signals.findings import Signals as Signals
from functional_bp.explain.signals.search import signals as signals
