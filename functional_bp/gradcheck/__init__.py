"""Is a hand-derived gradient right, and if not, where and why."""
