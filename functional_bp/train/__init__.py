"""Training goes by jit-compiled optax steps, ``fit`` and checkpoints: state in, state out.

The steps of the textbooks are visible in it: forward sweep, reverse sweep over every node,
W ← W − η · gradient, until the stopping criterion is met.
"""

from functional_bp.train.callbacks import BestWeights as BestWeights
from functional_bp.train.callbacks import Callback as Callback
from functional_bp.train.callbacks import CSVLogger as CSVLogger
from functional_bp.train.callbacks import EarlyStopping as EarlyStopping
from functional_bp.train.callbacks import LearningRate as LearningRate
from functional_bp.train.callbacks import ReduceLROnPlateau as ReduceLROnPlateau
from functional_bp.train.callbacks import TensorBoard as TensorBoard
from functional_bp.train.callbacks import TerminateAfter as TerminateAfter
from functional_bp.train.checkpoints import Checkpoints as Checkpoints
from functional_bp.train.evaluate import evaluate as evaluate
from functional_bp.train.evaluate import predict as predict
from functional_bp.train.fit import fit as fit
from functional_bp.train.history import History as History
from functional_bp.train.objective import LOSSES as LOSSES
from functional_bp.train.objective import METRICS as METRICS
from functional_bp.train.objective import Output as Output
from functional_bp.train.objective import supervised as supervised
from functional_bp.train.state import TrainState as TrainState
from functional_bp.train.state import init as init
from functional_bp.train.step import Step as Step
from functional_bp.train.step import step as step
