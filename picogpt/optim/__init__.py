"""Gradients to weights: the schedule, and the optimizers."""
