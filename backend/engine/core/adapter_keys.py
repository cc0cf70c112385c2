"""The names of an adapter's tensors in its file, as PEFT writes them."""

PREFIX = "base_model.model."
"""What PEFT puts in front of the base's own names."""


def key_of(layer: str, part: str) -> str:
    """Return the name of a part of a layer's adapter: `lora_A.weight`, `lora_magnitude_vector`."""
    return f"{PREFIX}{layer}.{part}"


def layer_of(key: str) -> str:
    """Return the layer that a tensor of an adapter file belongs to."""
    return key.removeprefix(PREFIX).split(".lora_", 1)[0]
