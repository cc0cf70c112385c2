"""Runs on disk: their folders, events, locks, queue, and the commands that repeat them.

The folder holds everything that is known of a run. Nothing here trains or knows the engine."""
