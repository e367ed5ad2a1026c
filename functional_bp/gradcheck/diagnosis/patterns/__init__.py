"""What a wrong gradient looks like, from its numbers alone."""
