"""Progress of training while it goes on."""

from functional_bp.train.progress.meter import progress as progress
