"""The GPT: its parameters, its forward pass, its windows, and decoding with a cache."""
