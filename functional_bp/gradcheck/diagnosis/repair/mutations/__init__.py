"""The catalogue says what a single equation could have been instead."""
