"""Pictures of an explanation: what is drawn, where it is placed, SVG, PNG and PDF."""
