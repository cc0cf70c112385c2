"""What a GGUF file is and whether it can become a base, from its header alone. Knows no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from backend.catalogue import gguf_families as known
from backend.errors import ModelError, Unsupported
from backend.files import read_limits
from backend.files.gguf_header import DAMAGED, Header, Many
from backend.sizes import size_text

CHOOSE = "Load the original model from its folder or from the Hub instead."
SPECIAL_IDS = ("bos", "eos", "eot", "unknown", "padding")
KINDS_OF_FILE = {
    "adapter": "a LoRA adapter, which is not a base",
    "mmproj": "the vision or audio part of a model, which is not a base",
    "imatrix": "a table for quantising a model, which is not a base",
}
ROPE_TABLE = "rope_freqs.weight"
LONG_ROPE = ("rope_factors_long.weight", "rope_factors_short.weight")


class About(NamedTuple):
    """What a file is, as far as it decides about its conversion; sizes are in bytes."""

    name: str
    architecture: str
    kind: str
    """The type that most of its numbers have, for example Q4_K."""
    dtype: str
    """The type that its numbers get: fp32, fp16 or bf16."""
    numbers: int
    layers: int
    vocabulary: int
    width: int

    @property
    def folder_bytes(self) -> int:
        """The bytes of the converted folder: its weights and some for its tokenizer."""
        return self.numbers * known.BYTES[self.dtype] + 200 * self.vocabulary


def about(header: Header) -> About:
    """Check what a file is; raises ModelError or Unsupported where it cannot become a base."""
    name = header.file.name
    _require_model(header, name)
    _require_family(header, name)
    _require_types(header, name)
    layers, width = _sizes(header, name)
    vocabulary = _require_tokenizer(header, name)
    return About(
        name=name,
        architecture=header.architecture,
        kind=header.kind,
        dtype=known.PLAIN.get(header.kind, "bf16"),
        numbers=header.numel,
        layers=layers,
        vocabulary=vocabulary,
        width=width,
    )


def _require_model(header: Header, name: str) -> None:
    """Raise Unsupported for files that hold something else, or a part of a model."""
    kind = header.values.get("general.type", "model")
    if header.architecture == "clip":
        kind = "mmproj"
    if kind != "model":
        what = KINDS_OF_FILE.get(str(kind), f"of the kind {str(kind)[:40]!r}, which is not a base")
        cure = (
            "Add it on the Adapters tab as a PEFT adapter: a folder with adapter_config.json."
            if kind == "adapter"
            else "Choose the GGUF file of the language model itself."
        )
        raise Unsupported(f"{name} is {what}.", cure=cure)


def _require_family(header: Header, name: str) -> None:
    if header.architecture not in known.FAMILIES:
        raise Unsupported(
            f"{name} is of the architecture {header.architecture[:60]!r}, whose GGUF files cannot "
            "be converted.",
            cure=f"{CHOOSE} These can be converted: {', '.join(sorted(known.FAMILIES))}.",
        )
    if any(tensor.name in LONG_ROPE for tensor in header.tensors):
        raise Unsupported(
            f"{name} has positions scaled by tables (LongRoPE), which are lost in a conversion.",
            cure=CHOOSE,
        )


def _require_types(header: Header, name: str) -> None:
    fewer = known.NOT_BY_BLOCKS if header.architecture in known.BY_BLOCKS else ()
    for tensor in header.tensors:
        if tensor.kind.name not in known.READ or tensor.kind.name in fewer:
            raise Unsupported(
                f"{name} has numbers of the type {tensor.kind.name}, which cannot be unpacked.",
                cure=f"{CHOOSE} Or choose a file of another type, such as Q8_0 or Q4_K_M.",
            )


def _sizes(header: Header, name: str) -> tuple[int, int]:
    """Return layers and width; raises ModelError where they do not fit the tensors."""
    own = header.own()
    layers, width = own.get("block_count"), own.get("embedding_length")
    words = next((t for t in header.tensors if t.name == "token_embd.weight"), None)
    if type(layers) is not int or not 1 <= layers <= min(read_limits.LAYERS, len(header.tensors)):
        raise _damaged(name, f"it says it has {str(layers)[:40]} layers, which is not possible")
    if words is None or len(words.shape) != 2:
        raise _damaged(name, "it has no table of tokens (token_embd.weight)")
    if width != words.shape[1]:
        raise _damaged(
            name,
            f"it says its width is {str(width)[:40]}, but its table of tokens has {words.shape[1]}",
        )
    if own.get("attention.head_count") == 0 and any(".attn_q" in t.name for t in header.tensors):
        raise _damaged(name, "it says it has 0 attention heads, but it holds their queries")
    for key, value in own.items():
        if type(value) is int and not -1 <= value <= read_limits.SIZE:
            raise _damaged(name, f"it says {key[:80]} = {value:,}, which is not possible")
    return layers, words.shape[1]


def _require_tokenizer(header: Header, name: str) -> int:
    """Return how many tokens there are; raises where the tokenizer cannot be made from the file."""
    values = header.values
    model, tokens = values.get("tokenizer.ggml.model"), values.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, Many) or not isinstance(model, str):
        raise ModelError(f"{name} holds no tokenizer.", cure=CHOOSE)
    if model not in known.TOKENIZERS:
        raise Unsupported(
            f"{name} has a tokenizer of the kind {model[:40]!r}, which cannot be converted.",
            cure=CHOOSE,
        )
    rows = next(t for t in header.tensors if t.name == "token_embd.weight").shape[0]
    if not 1 <= tokens.length <= rows:
        raise _damaged(name, f"it has {tokens.length:,} tokens, but room for {rows:,}")
    _require_lists(values, tokens.length, model, name)
    _require_split(values, model, name)
    template = values.get("tokenizer.chat_template", "")
    if not isinstance(template, str):
        raise _damaged(name, "its chat template is not a text")
    return tokens.length


def _require_lists(values: dict[str, Any], count: int, model: str, name: str) -> None:
    """Raise ModelError where lists of the tokenizer do not fit each other."""
    for key, least in (("scores", model == "llama"), ("token_type", False)):
        found = values.get(f"tokenizer.ggml.{key}")
        if found is None and not least:
            continue
        if _length(found) != count:
            raise _damaged(name, f"its list of {key} does not fit its {count:,} tokens")
    merges = values.get("tokenizer.ggml.merges")
    if model == "gpt2" and not isinstance(merges, Many):
        raise _damaged(name, "its tokenizer has no merges")
    for kind in SPECIAL_IDS:
        found = values.get(f"tokenizer.ggml.{kind}_token_id")
        if found is not None and (type(found) is not int or not 0 <= found < count):
            raise _damaged(name, f"its {kind} token is {str(found)[:40]}, which is not one of them")


def _length(value: Any) -> int:
    """Return the length of a list; -1 for other values."""
    return value.length if isinstance(value, Many) else len(value) if type(value) is list else -1


def _require_split(values: dict[str, Any], model: str, name: str) -> None:
    """Raise Unsupported where it is not known how the tokenizer splits text."""
    split = values.get("tokenizer.ggml.pre")
    if model == "llama" or split in known.ALL_SPLITS:
        return
    how = f"in the way {str(split)[:40]!r}" if split else "in a way that it does not name"
    raise Unsupported(
        f"{name} splits text {how}, which is not known here, so it would read texts wrongly.",
        cure=CHOOSE,
    )


def _damaged(name: str, what: str) -> ModelError:
    return ModelError(f"{name} cannot be used: {what}.", cure=DAMAGED)


def describe(found: About, files: Sequence[Path]) -> str:
    """Say what a conversion will do, before it does it."""
    size = sum(file.stat().st_size for file in files)
    return (
        f"{found.name} ({found.kind}, {size_text(size)}) will be converted once, into a folder of "
        f"{size_text(found.folder_bytes)} in {found.dtype} in the workspace."
    )
