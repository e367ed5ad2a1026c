"""Checkpoints: a state on disk, whole or not there, and back from it bit for bit."""

from functional_bp.train.checkpoints.checkpoint import Checkpoints as Checkpoints
from functional_bp.train.checkpoints.checkpoint import Restored as Restored
