"""How good a model is: its loss over a text, what it writes, what fewer bits cost it."""
