"""A base's chat template: the text that it makes of a conversation, where each answer begins and
ends in it, and which token ends an answer. Knows nothing of data files, weights or training."""
