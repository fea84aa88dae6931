"""Comparisons of picogpt with other programs: see README.md here."""
