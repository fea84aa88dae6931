"""The torture disturbs training runs with kills and other faults, and compares them with undisturbed ones."""
