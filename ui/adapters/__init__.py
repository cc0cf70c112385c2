"""The Load screen: the base model, and the adapters of the library.

Also owns the converter to plain LoRA, which Combine and Hot-swap use.
"""
