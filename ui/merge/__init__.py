"""The Merge screen: writing the base and adapters as one model.

Knows nothing of how weights are merged, which the engine does.
"""
