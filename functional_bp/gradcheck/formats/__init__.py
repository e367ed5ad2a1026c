"""A report as text, HTML, Markdown, JSON, JUnit XML and annotations: one format a file."""
