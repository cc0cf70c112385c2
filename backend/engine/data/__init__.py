"""Training data: rows become documents, documents become tokens with a loss mask, kept on disk.

Knows chat templates and tokenizers, and nothing of packs or training."""
