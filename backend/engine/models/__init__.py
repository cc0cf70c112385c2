"""Base models: their files and limits, loading, fingerprint, quantisation, layers and sizes.

Knows nothing of adapters or of the session."""
