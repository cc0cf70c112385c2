"""The hot-swap slot: prepare, compile, swap in milliseconds, leave; each step is verified.

Knows nothing of training, runs or data."""
