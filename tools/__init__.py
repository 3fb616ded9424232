"""Command lines; each is also a console script."""
