"""Runs to look at and compare: on a terminal, as a page, and as a page that follows a run."""
