"""The stages of a check, a file each: what is looked at, and what speaks against the claim."""
