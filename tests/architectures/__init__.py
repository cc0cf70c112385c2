"""A tiny random model of every causal language model type that Transformers lists."""
