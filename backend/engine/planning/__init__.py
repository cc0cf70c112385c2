"""Checks and estimates before a run: pre-flight check, notes, disk space, quantisation table.

Knows nothing of running: nothing here changes the session or writes a run's folder."""
