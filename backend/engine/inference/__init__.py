"""Answers and scores of the session's model, for one prompt or many rows in one batch.

Uses the session only to activate variants; knows nothing of training, runs or files."""
