"""A run watched live: on the screen, on a page, in TensorBoard, as a picture."""
