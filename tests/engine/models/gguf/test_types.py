"""The types of numbers: each that is claimed gives the values of an independent reading."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from transformers import AutoModelForCausalLM
from transformers.integrations.gguf import dequant

from backend.catalogue import gguf_families as known
from backend.engine.models.gguf import checks, conversion
from backend.errors import Unsupported
from backend.files import gguf_header
from tests.engine.models.gguf import gguf_files
from tests.engine.models.gguf.families import FAMILIES

WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
NAME = "blk.0.ffn_gate.weight"
OWN = "model.layers.0.mlp.gate_proj.weight"
BY_BOTH = [kind for kind in known.READ if Type[kind] in dequant.GGML_BLOCK]


def blocks(kind: str, rows: int = 256, width: int = 256) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return random blocks of a type whose values are all finite."""
    numbers, size = gguf.GGML_QUANT_SIZES[Type[kind]]
    generator = np.random.default_rng(7)
    found = generator.integers(0, 256, (rows * width // numbers * 8, size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        values = gguf.dequantize(found, Type[kind])
    good = np.isfinite(values).all(axis=1) & (np.abs(values).max(axis=1) < 1e3)
    assert good.sum() >= rows * width // numbers, kind
    return found[good][: rows * width // numbers].reshape(rows, -1)


def with_type(folder: Path, kind: str, name: str = "llama") -> tuple[Path, Any]:
    """Write a model of which one weight has a type; returns the file and that weight's values."""
    family = FAMILIES[name]
    model = gguf_files.tiny(family, **WIDE)
    if kind in ("F32", "F16", "BF16"):
        raw = gguf.quantize(model.state_dict()[OWN].numpy(), Type[kind])
    else:
        raw = blocks(kind)
    file = gguf_files.write(
        folder / "model.gguf", family, model, without=NAME, typed={NAME: (raw, Type[kind])}
    )
    return file, torch.from_numpy(np.array(gguf.dequantize(raw, Type[kind]), dtype=np.float32))


def test_the_sizes_of_all_types_are_those_of_the_format() -> None:
    ours = {kind.name: (kind.numbers, kind.bytes) for kind in gguf_header.KINDS.values()}

    assert ours == {kind.name: size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    assert {kind.name: number for number, kind in gguf_header.KINDS.items()} == {
        kind.name: int(kind) for kind in gguf.GGML_QUANT_SIZES
    }


@pytest.mark.parametrize("kind", known.READ)
def test_a_type_becomes_the_numbers_that_it_stands_for(kind: str, tmp_path: Path) -> None:
    file, expected = with_type(tmp_path, kind)
    folder = tmp_path / "folder"
    folder.mkdir()

    conversion.convert([file], folder, "", lambda text, fraction: None)

    made = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    # Most numbers are still F32, so the folder is in fp32 and nothing is rounded.
    assert made.dtype == torch.float32
    assert torch.equal(made.state_dict()[OWN], expected)


@pytest.mark.parametrize("kind", BY_BOTH)
def test_two_readings_of_a_type_agree(kind: str) -> None:
    """That of `gguf`, which is used, and that of Transformers, written apart from it."""
    raw = blocks(kind, rows=32)

    theirs = dequant.dequantize(torch.from_numpy(raw.reshape(-1)), int(Type[kind]))

    ours = torch.from_numpy(gguf.dequantize(raw, Type[kind])).reshape(-1)
    assert torch.allclose(ours, theirs.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["Q8_K", "I32", "F64", "NVFP4", "Q1_0", "Q8_1"])
def test_another_type_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    numbers, size = gguf.GGML_QUANT_SIZES[Type[kind]]
    raw = np.zeros((256, 256 // numbers * size), dtype=np.uint8)
    family = FAMILIES["llama"]
    plain = {"I32": np.int32, "F64": np.float64}.get(kind, np.uint8)
    file = gguf_files.write(
        tmp_path / "model.gguf",
        family,
        gguf_files.tiny(family, **WIDE),
        without=NAME,
        typed={NAME: (raw.view(plain), Type[kind])},
    )

    with pytest.raises(Unsupported, match=f"numbers of the type {kind}"):
        checks.about(gguf_header.read(file))


@pytest.mark.parametrize("kind", known.NOT_BY_BLOCKS)
def test_the_newer_reader_knows_fewer_types(kind: str, tmp_path: Path) -> None:
    """And Transformers 5.23 uses it for these families; this fails once it knows the type."""
    assert Type[kind] not in dequant.GGML_BLOCK
    family = FAMILIES["lfm2"]
    name = "blk.0.ffn_gate.weight"
    file = gguf_files.write(
        tmp_path / "model.gguf",
        family,
        gguf_files.tiny(family, hidden_size=256, intermediate_size=256),
        without=name,
        typed={name: (blocks(kind), Type[kind])},
    )

    with pytest.raises(Unsupported, match=f"numbers of the type {kind}"):
        checks.about(gguf_header.read(file))


@pytest.mark.parametrize(
    ("kind", "dtype"), [("F16", "fp16"), ("BF16", "bf16"), ("Q8_0", "bf16"), ("Q4_0", "bf16")]
)
@pytest.mark.parametrize("name", ["llama", "lfm2"])
def test_the_folder_has_the_type_of_the_file(
    kind: str, dtype: str, name: str, tmp_path: Path
) -> None:
    """A quantised file's numbers are unpacked in fp32 and rounded once, to bf16."""
    family = FAMILIES[name]
    model = gguf_files.tiny(family, hidden_size=64, intermediate_size=64)
    file = gguf_files.write(tmp_path / "model.gguf", family, model, matrices=Type[kind])
    folder = tmp_path / "folder"
    folder.mkdir()
    conversion.convert([file], folder, "", lambda text, fraction: None)

    made = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")

    assert checks.about(gguf_header.read(file)).dtype == dtype
    wanted = torch.float16 if dtype == "fp16" else torch.bfloat16
    assert made.dtype == wanted
    stored = {each.name: each for each in gguf.GGUFReader(file).tensors}["token_embd.weight"]
    values = torch.from_numpy(np.array(gguf.dequantize(stored.data, stored.tensor_type)))
    assert torch.equal(made.get_input_embeddings().weight, values.to(wanted))
