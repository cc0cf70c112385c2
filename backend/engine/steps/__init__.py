"""What one training step computes: packs and rows, attention within documents, layers, the loss.

Knows models and tokens, and nothing of optimisers, runs or the library."""
