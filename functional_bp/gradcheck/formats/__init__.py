"""A report is written as text, HTML, Markdown and JSON: one format a file."""
