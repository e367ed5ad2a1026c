"""Commands of ``functional-bp`` that belong to no other part: a module each.

A command is a module with ``add_arguments(parser)`` and ``run(args) -> int``, the exit status.
"""
