"""What every part of the engine stands on: jobs, devices, memory, errors, the Hub.

Knows nothing of models, adapters or data."""
