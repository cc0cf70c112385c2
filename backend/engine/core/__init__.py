"""Basics for the whole engine: job control, devices, memory, processes, errors, downloads.

Knows nothing of models, adapters or data."""
