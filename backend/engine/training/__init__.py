"""How a step is computed: packing, attention, loss, precision, and the Trainer around them.

Knows models and tokens, and nothing of runs, their folders or the library."""
