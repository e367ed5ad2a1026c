"""What a person hooks into training: stopping, logs, learning rates, and callbacks of their own."""

from functional_bp.train.callbacks.callback import Callback as Callback
from functional_bp.train.callbacks.callback import CallbackError as CallbackError
from functional_bp.train.callbacks.callback import Callbacks as Callbacks
from functional_bp.train.callbacks.callback import Lambda as Lambda
from functional_bp.train.callbacks.callback import Run as Run
from functional_bp.train.callbacks.callback import TerminateAfter as TerminateAfter
from functional_bp.train.callbacks.learning_rate import LearningRate as LearningRate
from functional_bp.train.callbacks.learning_rate import ReduceLROnPlateau as ReduceLROnPlateau
from functional_bp.train.callbacks.loggers import CSVLogger as CSVLogger
from functional_bp.train.callbacks.loggers import TensorBoard as TensorBoard
from functional_bp.train.callbacks.stopping import BestWeights as BestWeights
from functional_bp.train.callbacks.stopping import EarlyStopping as EarlyStopping

__all__ = [
    "BestWeights",
    "CSVLogger",
    "Callback",
    "CallbackError",
    "Callbacks",
    "EarlyStopping",
    "Lambda",
    "LearningRate",
    "ReduceLROnPlateau",
    "Run",
    "TensorBoard",
    "TerminateAfter",
]
