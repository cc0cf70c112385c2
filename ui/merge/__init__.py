"""The Merge screen: base and adapters written as one model."""
