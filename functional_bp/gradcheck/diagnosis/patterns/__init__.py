"""The numbers of a wrong gradient say what it looks like."""
