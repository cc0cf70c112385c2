"""The only code that imports torch, transformers, peft and datasets. Runs in the worker."""
