"""The text part of a model: what an adapter changes here, and what stays as it is.

A model for pictures or sound holds a language model beside towers of another kind. Only the modules
that text passes through are adapted. Which these are is read from the model itself: its decoder,
and the configurations of its parts. Knows no weights, so a model without any will do.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from backend.sizes import count_text

_OTHER = re.compile(r"(^|_)(vision|visual|image|img|picture|video|audio|speech|sound|vq)(_|$)")
"""Names of parts that are not for text, in configurations and in module paths."""
_CONTEXT = (
    "max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length",
    "context_length", "max_target_positions", "n_ctx",
)  # fmt: skip


class Part(NamedTuple):
    """A part of a model that no adapter changes."""

    module: str
    layers: int
    parameters: int

    @property
    def name(self) -> str:
        """Return its name for people: "the vision tower"."""
        return f"the {self.module.rsplit('.', 1)[-1].replace('_', ' ')}"

    @property
    def text(self) -> str:
        """Return name and size: "the vision tower (27 layers, 412 M parameters)"."""
        layers = f"{self.layers} layers, " if self.layers > 1 else ""
        return f"{self.name} ({layers}{count_text(self.parameters)} parameters)"


def text_config(config: Any) -> Any:
    """Return the configuration of the text part, which is the whole of most models."""
    try:
        return config.get_text_config(decoder=True)
    except (AttributeError, ValueError):  # not a model of Transformers, or with two text parts
        return config


def decoder_of(model: torch.nn.Module) -> str:
    """Return the module that holds the text part; empty where that is the whole model."""
    config = getattr(model, "config", None)
    if config is None or text_config(config) is config:
        return ""
    find: Any = getattr(model, "get_decoder", None)
    found = find() if find is not None else model
    return next((name for name, module in model.named_modules() if module is found), "")


def outside(model: torch.nn.Module) -> list[Part]:
    """Return the parts that text does not pass through, the outermost module of each."""
    decoder, head = decoder_of(model), _head(model)
    mixed = _has_other_parts(getattr(model, "config", None))
    return list(_outside(model, "", decoder, head, mixed))


def is_inside(name: str, parts: list[Part]) -> bool:
    """Tell whether a module belongs to one of these parts."""
    return any(name == part.module or name.startswith(f"{part.module}.") for part in parts)


def part_named_in(name: str) -> str:
    """Return the part for pictures or sound that a module's path names; empty if there is none."""
    found = next((each for each in name.split(".") if _OTHER.search(each)), "")
    return f"the {found.replace('_', ' ')}" if found else ""


def layers(model: torch.nn.Module) -> int:
    """Return the number of layers of the text part; 0 where it has no list of layers."""
    lists = {name: module for name, module in _lists(model)}
    said = largest(text_config(getattr(model, "config", None)), "num_hidden_layers")
    if not lists or any(len(module) == said for module in lists.values()):
        return said
    return len(max(lists.values(), key=_parameters))


def width(model: torch.nn.Module) -> int:
    """Return the hidden size of the text part; 0 where it is not known."""
    if said := largest(text_config(getattr(model, "config", None)), "hidden_size"):
        return said
    embeddings = _embeddings(model)
    return int(embeddings.weight.shape[-1]) if hasattr(embeddings, "weight") else 0


def largest(config: Any, name: str) -> int:
    """Return a size from a configuration, the largest where layers differ; 0 where it has none.

    Transformers 5.23 raises AmbiguousGlobalPerLayerAttributeError, a RuntimeError, for a size that
    each layer has for itself.
    """
    try:
        said = getattr(config, name, None)
    except RuntimeError:
        said = [getattr(each, name, None) for each in config.per_layer_config]
    each = said if isinstance(said, list | tuple) else [said]
    return max((n for n in each if isinstance(n, int) and not isinstance(n, bool)), default=0)


def vocabulary(model: torch.nn.Module) -> int:
    """Return the number of rows of the embeddings, or what the configuration says."""
    embeddings = _embeddings(model)
    if embeddings is not None and hasattr(embeddings, "weight"):
        return int(embeddings.weight.shape[0])
    return largest(text_config(getattr(model, "config", None)), "vocab_size")


def context_length(config: Any) -> int:
    """Return the context length in tokens; 0 where a configuration names none, as for Mamba."""
    text = text_config(config)
    return next((found for name in _CONTEXT if (found := largest(text, name)) > 0), 0)


def tied(model: torch.nn.Module) -> bool:
    """Tell whether the output head and the embeddings are one tensor."""
    head, embeddings = _head(model), _embeddings(model)
    if head is None or embeddings is None:
        return False
    return getattr(head, "weight", None) is getattr(embeddings, "weight", head)


def _outside(
    module: torch.nn.Module, path: str, decoder: str, head: Any, mixed: bool
) -> Iterator[Part]:
    for name, child in module.named_children():
        place = f"{path}.{name}" if path else name
        if child is head or not any(True for _ in child.parameters()):
            continue
        if decoder == place and not mixed:
            continue
        leads = decoder == place or decoder.startswith(f"{place}.")
        within = not decoder or f"{place}.".startswith(f"{decoder}.")
        if (mixed and _OTHER.search(name)) or not (leads or within):
            yield Part(place, max((len(each) for _, each in _lists(child)), default=0),
                       _parameters(child))  # fmt: skip
        elif leads or mixed:
            yield from _outside(child, place, decoder, head, mixed)


def _has_other_parts(config: Any) -> bool:
    """Tell whether a configuration describes a part for pictures or sound."""
    return any(_OTHER.search(name) for name in getattr(config, "sub_configs", None) or ())


def _lists(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.ModuleList]]:
    """Yield the outermost lists of modules in the text part of a model, or in one of its parts."""
    parts = outside(model) if hasattr(model, "config") and decoder_of(model) else []
    found: list[str] = []
    for name, module in model.named_modules():
        outermost = not any(name.startswith(f"{each}.") for each in found)
        if isinstance(module, torch.nn.ModuleList) and outermost and not is_inside(name, parts):
            found.append(name)
            yield name, module


def _parameters(module: torch.nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def _head(model: torch.nn.Module) -> Any:
    find: Any = getattr(model, "get_output_embeddings", None)
    return find() if find is not None else None


def _embeddings(model: torch.nn.Module) -> Any:
    find: Any = getattr(model, "get_input_embeddings", None)
    try:
        return find() if find is not None else None
    except NotImplementedError:
        return None
