"""The state of the adapters on a model, as PEFT reads it from the layers. Changes nothing."""

from collections.abc import Callable, Sequence

from peft import PeftModel
from peft.peft_model import TunerModelStatus
from peft.tuners.lora import LoraLayer

from backend.engine.methods import peft_io
from backend.results import AdapterStatus


def read(
    peft: PeftModel,
    adapted: dict[str, LoraLayer],
    active: Sequence[tuple[str, float]],
    name_of: Callable[[str], str],
) -> tuple[list[AdapterStatus], str]:
    """Return each adapter's status, and what differs from the active set that should be on."""
    reported = peft.get_model_status()
    merged = reported.merged_adapters if isinstance(reported.merged_adapters, list) else []
    on = reported.active_adapters if isinstance(reported.active_adapters, list) else []
    strengths = dict(active)
    rows = [
        AdapterStatus(
            name=name_of(id),
            loaded=True,
            active=id in on,
            strength=strengths.get(id, 1.0),
            trainable=reported.requires_grad.get(id) is not False,
            merged=id in merged,
            memory_bytes=sum(peft_io.bytes_in(layer, id) for layer in adapted.values()),
        )
        for id in reported.available_adapters
    ]
    return rows, _irregular(reported, [id for id, _ in active], name_of)


def _irregular(reported: TunerModelStatus, active: list[str], name_of: Callable[[str], str]) -> str:
    """Name what differs between layers or from the session's own record, if anything."""
    parts = {
        "enabled": reported.enabled,
        "active": reported.active_adapters,
        "merged": reported.merged_adapters,
        **{f"requires_grad of {name_of(id)}": g for id, g in reported.requires_grad.items()},
    }
    odd = [part for part, value in parts.items() if value == "irregular"]
    if reported.active_adapters != active and "active" not in odd:
        odd.append("active")
    if reported.merged_adapters:
        odd.append("merged")
    return f"The adapters' state differs between layers ({', '.join(odd)})." if odd else ""
