"""How good a model is: its loss over a text, samples of its text, and what fewer bits cost."""
