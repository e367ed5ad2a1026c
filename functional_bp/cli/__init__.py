"""The command line ``functional-bp`` has a file for each command."""
