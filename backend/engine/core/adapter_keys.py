"""The names of an adapter's tensors in its file, as PEFT writes them (`save_pretrained`)."""

PREFIX = "base_model.model."
"""The prefix that PEFT puts before the base's own module names."""


def key_of(layer: str, part: str) -> str:
    """Return a tensor's name; `part` is such as `lora_A.weight` or `lora_magnitude_vector`."""
    return f"{PREFIX}{layer}.{part}"


def layer_of(key: str) -> str:
    """Return the layer that a tensor of an adapter file belongs to."""
    return key.removeprefix(PREFIX).split(".lora_", 1)[0]
