"""Writes the tiny models of `families` as GGUF files, as llama.cpp's converter does."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.modeling_utils import PreTrainedModel

from tests.engine.models.gguf.families import SIZES, USUAL, VOCABULARY, Family, Weights

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"


def tiny(family: Family, **changes: Any) -> PreTrainedModel:
    """Build a random model of a family, its biases and norms random too."""
    known = CONFIG_MAPPING[family.kind]
    config = known(**{**SIZES, **family.config, **changes})
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and not name.endswith(("A_log", ".D")):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    """Add a tokenizer of bytes and a few pairs of letters, which splits as GPT-2 does."""
    letters = sorted(bytes_to_unicode().values())
    pairs = [(a, b) for a in "etaoinsh" for b in "etaoinsh"][: VOCABULARY - len(letters) - 3]
    tokens = ["<pad>", "<s>", "</s>", *letters, *(a + b for a, b in pairs)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges([f"{a} {b}" for a, b in pairs])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


def write(
    path: Path,
    family: Family,
    model: PreTrainedModel,
    *,
    vocabulary: Callable[[gguf.GGUFWriter], None] = add_vocabulary,
    more: Mapping[str, Any] | None = None,
    without: str = "",
    typed: Mapping[str, tuple[Any, gguf.GGMLQuantizationType]] | None = None,
    matrices: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
) -> Path:
    """Write a model as a GGUF file with F32 weights; `vocabulary` adds its tokenizer.

    `more` are tensors that are added, `typed` those with blocks of a type, `without` is one that is
    left out; `matrices` is the type of all others that have two dimensions.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, family.architecture)
    writer.add_type("model")
    writer.add_name("tiny")
    for key, value in keys_of(family, config).items():
        add_key(writer, f"{family.architecture}.{key}", value)
    vocabulary(writer)
    for name, tensor in tensors_of(family, model):
        if name != without:
            fits = tensor.ndim == 2 and tensor.shape[-1] % 32 == 0
            kind = matrices if fits else gguf.GGMLQuantizationType.F32
            values = np.ascontiguousarray(tensor.float().numpy())
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    for name, values in (more or {}).items():
        writer.add_tensor(name, np.asarray(values, dtype=np.float32))
    for name, (blocks, kind) in (typed or {}).items():
        writer.add_tensor(name, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def keys_of(family: Family, config: Any) -> dict[str, Any]:
    """Return what llama.cpp's converter writes about a model."""
    named = {**USUAL, **family.keys}
    values = {
        key: how(config) if callable(how) else getattr(config, how)
        for key, how in named.items()
        if how is not None
    }
    return {key: value for key, value in values.items() if value is not None}


def add_key(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add a value in the type that llama.cpp uses."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def tensors_of(family: Family, model: PreTrainedModel) -> Weights:
    """Yield a model's tensors with the names and the contents that they have in a GGUF file."""
    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    layers = getattr(model.config, "num_hidden_layers", 0)
    names = gguf.get_tensor_name_map(known[family.architecture], layers)
    tied, suffixes = model.config.tie_word_embeddings, (".weight", ".bias")
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        for own, changed in family.change(name, tensor.detach(), model.config):
            inner = own.removeprefix("transformer.")  # llama.cpp converts BLOOM without its head
            found = names.get_name(own, suffixes) or names.get_name(inner, suffixes)
            assert found is not None, own
            yield found, changed
