"""The catalogue: what a single equation could have been instead."""
