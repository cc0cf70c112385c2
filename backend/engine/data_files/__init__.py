"""Data files from outside as numbered rows, each of a bounded size.

Knows formats of files and the Hub, and nothing of what a row means."""
