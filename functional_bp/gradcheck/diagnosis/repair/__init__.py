"""The line of a fault and its repair are found by edits of a backward pass, tried in numbers."""
