"""Batches of a person's data, and the errors of data that make none."""

from functional_bp.train.data.source import Source as Source
from functional_bp.train.data.source import source as source
from functional_bp.train.data.source import split as split
