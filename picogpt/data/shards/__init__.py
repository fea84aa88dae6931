"""Ids on the disk: appended in chunks, verified, and read."""
