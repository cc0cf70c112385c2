"""Runs on disk: their folders, events, locks, queue, and commands that repeat them.

A folder is the truth about its run; nothing here trains or knows the engine."""
