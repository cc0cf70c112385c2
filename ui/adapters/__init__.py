"""The Load screen: the base model, and the adapters of the library."""
