"""A function at a point, as a textbook shows it: every value, every gradient, every formula."""
