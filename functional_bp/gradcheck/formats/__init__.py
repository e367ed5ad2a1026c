"""A report as text, HTML, Markdown and JSON: one format a file."""
