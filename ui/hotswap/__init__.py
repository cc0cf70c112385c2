"""The Hot-swap screen: preparing the slot, and swapping adapters in it.

Knows nothing of compiling, which the engine does.
"""
