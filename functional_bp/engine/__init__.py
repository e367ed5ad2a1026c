"""The engine holds rules, the plan of a graph, the two sweeps, forward mode, and the transforms."""
