"""The Combine screen: blending adapters, and trying a mix before it is saved.

Knows nothing of how a blend is computed, which `backend.blends` and the engine do.
"""
