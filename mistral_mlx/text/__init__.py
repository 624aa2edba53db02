"""Strings to ids and back. Knows no model and no weights: it works from tokenizer files and GGUF metadata."""
