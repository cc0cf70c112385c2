"""How a training step is computed: packing, attention, loss, precision, and the Trainer.

Knows models and tokens, and nothing of run folders or the library."""
