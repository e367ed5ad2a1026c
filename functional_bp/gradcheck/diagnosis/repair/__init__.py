"""The line of the fault and its repair: edits of a backward pass, each tried in numbers."""
