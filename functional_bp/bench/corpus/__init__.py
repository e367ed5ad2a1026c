"""Hand-derived gradients, right ones and wrong ones, for measuring what a checker finds.

``families`` holds operations with a right ``jax.custom_vjp``, and under each the faults that a
person could make in it, as edits of its source. ``hard`` holds right ones that checkers accuse.
"""

from functional_bp.bench.corpus.declare import Case as Case
from functional_bp.bench.corpus.declare import Fault as Fault
from functional_bp.bench.corpus.declare import Operation as Operation
from functional_bp.bench.corpus.sources import Loaded as Loaded
from functional_bp.bench.corpus.sources import cases as cases
from functional_bp.bench.corpus.sources import load as load
from functional_bp.bench.corpus.sources import operations as operations
