"""Answers and scores of the session's model: one prompt, or many rows in one batch.

Knows of the session only which adapters a variant means."""
