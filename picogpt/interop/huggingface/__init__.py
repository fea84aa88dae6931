"""Hugging Face's folders of a model, such as a GPT-2 or a GPT-Neo, in and out."""
