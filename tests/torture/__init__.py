"""Runs that are killed, stopped, starved and damaged, and must come out the same: see README.md above here."""
