"""Facts of the loaded base model."""

from backend import CHAT_TEMPLATES
from backend import results as rs
from ui.components import units
from ui.components.safe_view import Child, Node, el, facts


def base_facts(base: rs.ModelFacts | None) -> Node:
    """Describe the loaded base."""
    if base is None:
        sentence = "No base model is loaded. The bundled starter is ready in a few seconds."
        return el("p", sentence, cls="aw-quiet aw-empty")
    predicted, measured = base.memory_predicted_bytes, base.memory_measured_bytes
    pairs: list[tuple[str, Child]] = [
        ("Name", base.name),
        (
            "Architecture",
            f"{base.architecture}, {base.layers} layers, hidden size {base.hidden_size}",
        ),
        (
            "Parameters",
            f"{units.short_count(base.parameters)} ({units.count(base.parameters)})",
        ),
        ("Precision", _precision(base)),
        *([("Quantised", base.quantization_note)] if base.quantization_note else []),
        *(("Note", note) for note in base.notes),
        ("Device", base.device),
        ("Memory", f"{units.size(measured)} measured, {units.size(predicted)} predicted"),
        *([("Saved", f"{units.size(base.bytes_saved)} by quantising")] if base.bytes_saved else []),
        *([("Not adapted", "; ".join(base.untouched))] if base.untouched else []),
        ("Context length", _context(base)),
        ("Vocabulary", units.plural(base.vocabulary, "token")),
        ("Chat template", _template(base)),
        ("Loaded in", units.duration(base.seconds)),
        ("From", el("span", base.path, cls="aw-path")),
    ]
    return facts(pairs)


def _context(base: rs.ModelFacts) -> str:
    if base.context_length:
        return units.plural(base.context_length, "token")
    return "its configuration names none"


def _template(base: rs.ModelFacts) -> str:
    if base.given_template != "own":
        return f"{CHAT_TEMPLATES[base.given_template].title}, set in this app"
    if base.chat_template:
        return "its own"
    return "none: it continues plain text. You can choose one under Advanced, Chat template."


def _precision(base: rs.ModelFacts) -> str:
    """Return how the weights are stored; for a quantised base, those not quantised."""
    if base.quantization != "none":
        return f"{base.precision}, for weights that are not quantised"
    return f"{base.precision}: {base.precision_reason}"
