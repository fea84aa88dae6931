"""Other projects' weights: read from their own files without their libraries, and written for them."""
