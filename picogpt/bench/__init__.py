"""Benchmarks: what `picogpt bench` measures, through the same classes that users have."""
