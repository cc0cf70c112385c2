"""Data sets of the Hugging Face Hub as tables: their cards, files and prepared copies.

Knows nothing of what a row means."""
