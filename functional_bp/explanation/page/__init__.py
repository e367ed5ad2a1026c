"""A page that a browser opens without a network: the graph scope by scope, with all that is known.

``drawing`` lays out each scope; ``document`` collects what is told of each value and equation, and
puts both with ``page.html``, ``page.css`` and the scripts into one file. In the page
a scope opens where it stands: ``unfolding.js`` makes room for its view in the view around it.
"""

from functional_bp.explanation.page.document import frame, page

__all__ = ["frame", "page"]
