"""``functional-bp demo``: a first complete run, on handwritten digits, gradients compared first."""
