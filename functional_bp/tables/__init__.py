"""Tables are written for a terminal, for Markdown, for HTML and for LaTeX: one format a file."""
