"""The parts of an adapter: configuration, target modules, tensors, and their files.

Knows torch modules and PEFT, and nothing of the session, the library or training."""
