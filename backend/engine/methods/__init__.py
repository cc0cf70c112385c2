"""What an adapter is made of: configuration, target modules, tensors, and their files.

Knows torch modules and PEFT, and nothing of the session, the library or training."""
