"""Safe reading and writing of files: atomic writes, size limits, and allowed folders.

Knows nothing of what a file means."""
