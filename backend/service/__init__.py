"""The service: the facade that page, HTTP API and command line use, and the engine's processes.

Knows requests, results, runs and the workspace. Knows nothing of torch or models."""
