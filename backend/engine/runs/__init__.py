"""One training run, from its request to an adapter in the library.

Its log, its tests on the way, pauses, early stopping, and what rescues it."""
