"""Files of tensors, read without running anything that is in them."""
