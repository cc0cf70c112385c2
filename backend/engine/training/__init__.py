"""How steps become a training: precision, memory, schedules, checkpoints, and the Trainer.

Knows models and tokens, and nothing of run folders or the library."""
