"""Data files from outside, read as numbered rows, each of limited size.

Knows file formats and the Hub, and nothing of what a row means."""
