"""A check says whether a gradient derived by hand is right, and if not, where and why."""
