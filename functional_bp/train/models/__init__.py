"""Small models of the textbooks, as plain functions: ``init`` draws parameters, ``apply`` predicts.

No layer library: parameters are a dictionary of arrays, a model is a function of them.
"""

from functional_bp.train.models import gpt as gpt
from functional_bp.train.models import lenet as lenet
from functional_bp.train.models import lstm as lstm
from functional_bp.train.models import mlp as mlp
from functional_bp.train.models import recurrent as recurrent
