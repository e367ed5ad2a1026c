"""What a compiled program allocates, what fills it, and why it is kept."""
