"""Other programs' models: read from their own files without their libraries, and written in their formats."""
