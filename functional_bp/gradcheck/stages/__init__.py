"""A stage is what is looked at, and what then speaks against the claim."""
