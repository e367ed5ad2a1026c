"""Hand-derived gradients, right ones and wrong ones, for measuring what a checker finds.

``families`` holds operations with a right ``jax.custom_vjp``, and under each the faults that a
person could make in it, as edits of its source. ``hard`` holds right ones that checkers accuse.
"""

from benchmarks.corpus.declare import Case as Case
from benchmarks.corpus.declare import Fault as Fault
from benchmarks.corpus.declare import Operation as Operation
from benchmarks.corpus.sources import Loaded as Loaded
from benchmarks.corpus.sources import cases as cases
from benchmarks.corpus.sources import load as load
from benchmarks.corpus.sources import operations as operations
