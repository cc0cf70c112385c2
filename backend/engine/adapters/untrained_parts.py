"""LoRA factors of a tower that no text passed through: they came untrained, and are left out.

PEFT puts an adapter on every layer that a target names, so one that was trained on text with
`q_proj` has factors for the vision tower, too. Its second factor is still zero there, so it changes
nothing. Others are left for the scan to refuse.
"""

from backend.engine.core.adapter_keys import layer_of
from backend.engine.methods.targets import outside
from backend.engine.models.linear_layers import Target
from backend.files.safetensors_header import StoredTensor, blocks

FACTORS = (".lora_A.weight", ".lora_B.weight")
NOTE = "Its layers for {part} are zero, because text never trained them: they were left out."


def without_untrained(
    tensors: dict[str, StoredTensor], layers: list[Target] | None
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Return an adapter's tensors, by their names in the base, without such factors; with notes.

    Raises ModelError where the file ends too early.
    """
    if layers is None:
        return tensors, []
    parts = {key: part for key in tensors if (part := outside(layer_of(key), layers))}
    found = {part: [key for key in parts if parts[key] == part] for part in parts.values()}
    gone = {
        part: set(keys)
        for part, keys in found.items()
        if all(key.endswith(FACTORS) for key in keys)
        and all(_is_zero(tensors[key]) for key in keys if key.endswith(FACTORS[1]))
    }
    dropped = set[str]().union(*gone.values())
    kept = {key: each for key, each in tensors.items() if key not in dropped}
    return kept, [NOTE.format(part=part) for part in gone]


def _is_zero(stored: StoredTensor) -> bool:
    return not any(block.strip(b"\0") for block in blocks(stored))
