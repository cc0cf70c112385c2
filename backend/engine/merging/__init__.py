"""Merging adapters into a copy of the base on disk, tensor by tensor, with verification.

Knows nothing of the session's loaded weights: a merge reads the base's own files."""
