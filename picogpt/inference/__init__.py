"""From a prompt to text: reading with a model, choosing tokens, and showing what they spell."""
