"""The model card of a merged model: what it was made of, how it was verified, how to use it."""

import time
from collections.abc import Sequence

from backend.catalogue.packaged_models import PACKAGED_MODELS
from backend.engine.core.dtypes import DTYPES
from backend.permissions import looks_like_path
from backend.requests import Variant
from backend.results import AdapterInfo, ModelFacts


def card(
    base: ModelFacts,
    adapters: Sequence[AdapterInfo],
    variant: Variant,
    *,
    precision: str,
    verified: str,
) -> str:
    """Return the card's text."""
    dtype = str(DTYPES[precision]).removeprefix("torch.")
    names = ", ".join(info.name for info in adapters)
    head = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    lines = [
        *head,
        "tags: [merge, adapter-workbench]",
        "---",
        f"# {base.name} with {names}",
        "",
        f"The base model {base.name} with {names} merged into its weights, made on "
        f"{time.strftime('%Y-%m-%d')} with Adapter Workbench. It needs no PEFT.",
        "",
        f"- Base: {base.name} (from {_origin(base)}, fingerprint {base.fingerprint})",
        *(_adapter(info, strength) for info, (_, strength) in zip(adapters, variant, strict=True)),
        f"- Stored in: {precision}",
        f"- Verified: {verified}.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'model = AutoModelForCausalLM.from_pretrained("this-folder", dtype="{dtype}")',
        'tokenizer = AutoTokenizer.from_pretrained("this-folder")',
        "```",
        "",
        "The licences of the base model and of the adapters' training data apply.",
        "",
    ]
    return "\n".join(lines)


def _adapter(info: AdapterInfo, strength: float) -> str:
    made = f", {info.recipe}" if info.recipe else f", trained on {info.data}" if info.data else ""
    return (
        f"- Adapter: {info.name} at strength {strength:g} ({info.method}, rank {info.rank}{made})"
    )


def _origin(base: ModelFacts) -> str:
    """Name the origin of the base; a local folder is not named, as it means nothing to others."""
    if base.source == "starter":
        return "the bundled starter kit"
    if base.source in PACKAGED_MODELS:
        model = PACKAGED_MODELS[base.source]
        return f"{model.hub_id}, converted from the Python package {model.package}"
    if base.origin:
        return f"a model {base.origin}"
    return "a folder" if looks_like_path(base.source) else base.source
