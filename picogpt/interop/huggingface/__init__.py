"""Hugging Face's folders of a GPT-2 or a GPT-Neo, in and out."""
