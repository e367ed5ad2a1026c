"""A diagnosis says what a wrong gradient looks like, where the fault stands, and what to write."""
