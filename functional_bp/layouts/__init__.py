"""The axes of a graph are dimensions, and what may be divided follows from them."""
