"""The command line ``functional-bp``: a file for each command."""
