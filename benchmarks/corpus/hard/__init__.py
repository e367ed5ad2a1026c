"""Right gradients that are hard to believe: kinks, scales, precision, iterations, structure."""
