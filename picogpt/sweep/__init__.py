"""Experiments that compare themselves: one command, several cases, several seeds, one table."""
