"""The service: the one facade, and what stands between it and the engine's process.

Knows requests, results, runs and the workspace; never torch."""
