"""A page that a browser opens without a network: the graph scope by scope, with all that is known.

``facts`` collects what is told of each value and equation, ``drawing`` lays out each scope,
``document`` puts both with ``page.html``, ``page.css`` and ``page.js`` into one file.
"""

from functional_bp.explain.page.document import PageError, frame, page

__all__ = ["PageError", "frame", "page"]
