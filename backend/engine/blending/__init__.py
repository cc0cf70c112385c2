"""Blends: one adapter combined from several, and how similar the sources are.

Works on adapter files; knows nothing of training or answering."""
