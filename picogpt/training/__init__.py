"""Training: optimizers, steps, runs, and what a run leaves on the disk and shows on the screen."""
