"""Exporting a run as a folder that repeats the training without this app.

Reads runs and the library, and changes neither."""
