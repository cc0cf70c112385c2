"""One training run, from its request to an adapter in the library.

Owns its log, its evaluations, pauses, early stopping and recovery from lack of memory. How a step
is computed is the business of `training`."""
