"""Both sweeps as tables: in the terminal, as Markdown, LaTeX and HTML."""
