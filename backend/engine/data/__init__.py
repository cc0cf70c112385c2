"""Rows as documents, and documents as tokens with a loss mask, kept on disk.

Knows chat templates and tokenizers, and nothing of batches or training."""
