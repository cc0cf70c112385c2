"""Blends: one adapter made of several, and how similar the sources are."""
