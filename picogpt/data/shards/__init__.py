"""Ids on the disk: appended in chunks, verified, read in order."""
