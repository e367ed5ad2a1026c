"""What a wrong gradient looks like, which line it comes from, and what to write instead."""
