"""Logs as tables, plots, pictures and pages: one run, or several compared."""
