"""Watching a run live: on the screen, on a page, in TensorBoard, and as a picture."""
