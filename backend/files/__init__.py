"""Reading and writing files safely: whole or not at all, bounded, where it is allowed.

Knows nothing of what a file means."""
