"""Which tensors of a checkpoint make which parameter of a model, by Transformers' own rules.

Transformers 5 renames tensors when it loads a checkpoint, and fuses or splits some of them: experts
of one layer become one parameter. The names here follow `convert_and_load_state_dict_in_model` of
Transformers 5.23.0 step by step, so that files can be read and written without loading the model.
Knows nothing of adapters.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.modeling_utils import PreTrainedModel

from backend.sizes import count_text

SHOWN_PARTS = 8
_PART = re.compile(r"(?:model\.|language_model\.)*([^.]+(?:\.\d+)?)")
"""The name of a part, with the number of a layer, and what may come before it."""


class Conversion(NamedTuple):
    """Several tensors of a checkpoint that make one or more parameters.

    `keys` holds each tensor's key with the pattern of the converter that it matched; `first` is the
    parameter that Transformers names the group after.
    """

    first: str
    keys: tuple[tuple[str, str], ...]
    converter: WeightConverter

    def build(
        self, model: torch.nn.Module, read: Callable[[str], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Return the parameters by name, from the tensors that `read` returns by key.

        The values are those that Transformers loads, in the dtype that `read` gives them.
        """
        converter = deepcopy(self.converter)
        for key, pattern in self.keys:
            converter.add_tensor(self.first, key, pattern, read(key))
        config: Any = model.config
        made = converter.convert(self.first, model=model, config=config)
        return {name: part[0] if isinstance(part, list) else part for name, part in made.items()}


class Names(NamedTuple):
    """What each tensor of a checkpoint is in a model.

    `keys` has the key of every parameter or buffer that is stored unchanged; `conversions` the
    groups that make others; `unused` the keys that the model has no place for, such as those of a
    picture tower in a model of text alone.
    """

    keys: dict[str, str]
    conversions: tuple[Conversion, ...]
    unused: tuple[str, ...]


def read_names(model: torch.nn.Module, stored: Iterable[str]) -> Names:
    """Map the keys of a checkpoint to the names of a model, with or without weights.

    Where a checkpoint holds two tensors for one parameter, Transformers reads the first; the second
    counts as unused.
    """
    assert isinstance(model, PreTrainedModel)
    there = model.state_dict()
    prefix = model.base_model_prefix
    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    keys, unused = dict[str, str](), list[str]()
    groups: dict[str, list[tuple[str, str]]] = {}
    for key in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, there)
        if name not in there and key in there:
            name, pattern = rename_source_key(key, [], [], prefix, there)
        if name not in there or (pattern is None and name in keys):
            unused.append(key)
        elif pattern is None:
            keys[name] = key
        else:
            groups.setdefault(name, []).append((key, pattern))
    made = tuple(
        Conversion(first, tuple(members), by_pattern[members[0][1]])
        for first, members in groups.items()
    )
    return Names(keys, made, tuple(unused))


def left_out(sizes: dict[str, int]) -> list[str]:
    """Name the parts of a checkpoint that a model has no place for; `sizes` has their numbers.

    A class of text alone loads no picture tower, and no layers that predict several tokens ahead.
    """
    parts: Counter[str] = Counter()
    for key, size in sizes.items():
        found = _PART.match(key)
        parts[found[1] if found else key] += size
    listed = [
        f"{name[:60].replace('_', ' ')} ({count_text(size)} parameters), which is in its files and "
        "not loaded"
        for name, size in parts.most_common(SHOWN_PARTS)
    ]
    more = len(parts) - len(listed)
    return sorted(listed) + ([f"{more} more parts of its files"] if more else [])
