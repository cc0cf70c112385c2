"""Adapters as other programs write them: names, patterns, settings and marks, compared with PEFT.

The file that each is made from is scored by plain PEFT; what was changed in it changes nothing.
"""

import codecs
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from backend import requests as rq
from backend.errors import ModelError, Unsupported, WorkbenchError
from tests.engine import tiny
from tests.engine.adapters.lifecycle.conftest import WEIGHTS, Bench, do

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."


def copy(source: Path, folder: Path) -> Path:
    return Path(shutil.copytree(source, folder))


def rename(folder: Path, change: Callable[[str], str]) -> Path:
    tensors = {change(key): tensor for key, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)
    return folder


def say(folder: Path, **fields: Any) -> Path:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}), encoding="utf-8")
    return folder


def require_same(bench: Bench, source: Path, original: Path) -> Any:
    """Add the adapter, and require the answers of the original; returns what was added."""
    report = do(bench, rq.InspectAdapter(source=str(source)))
    added = do(bench, rq.LoadAdapter(source=str(source), name="newcomer"))
    expected = tiny.plain_scores(bench.base, original)
    assert tiny.scores(bench.service, [("newcomer", 1.0)]) == pytest.approx(expected, rel=1e-5)
    kept = bench.service.library.folder(added.adapter.id)
    assert tiny.plain_scores(bench.base, kept) == pytest.approx(expected, rel=1e-5)
    assert set(report.notes) <= set(added.notes)
    assert report.verdict != "cannot"
    return report


WRAPPED: dict[str, tuple[Callable[[str], str], str]] = {
    "no prefix": (lambda key: key.removeprefix(PREFIX), "was missing"),
    "twice": (lambda key: PREFIX + key, "more than once"),
    "DDP outside": (lambda key: f"module.{key}", "'module.'"),
    "DDP inside": (lambda key: key.replace(PREFIX, f"{PREFIX}module."), "'module.'"),
    "compiled": (lambda key: key.replace(PREFIX, f"{PREFIX}_orig_mod."), "'_orig_mod.'"),
    "compiled outside": (lambda key: f"_orig_mod.{key}", "'_orig_mod.'"),
    "FSDP in each layer": (
        lambda key: re.sub(r"(layers\.\d+\.)", r"\1_fsdp_wrapped_module.", key),
        "'_fsdp_wrapped_module.'",
    ),
    "checkpointed": (
        lambda key: key.replace("self_attn.", "_checkpoint_wrapped_module.self_attn."),
        "'_checkpoint_wrapped_module.'",
    ),
    "with PEFT's name of the adapter": (
        lambda key: re.sub(r"(lora_[AB])\.", r"\1.default.", key),
        "'default'",
    ),
    "all of it": (
        lambda key: "module._orig_mod." + re.sub(r"(lora_[AB])\.", r"\1.my-run.", key),
        "'my-run'",
    ),
    "from a model without a head": (
        lambda key: key.replace(f"{PREFIX}model.", PREFIX),
        "'no prefix' in its file, and under 'model.'",
    ),
    "from a model beside a picture tower": (
        lambda key: key.replace(f"{PREFIX}model.", f"{PREFIX}model.language_model."),
        "under 'model.language_model.' in its file, and under 'model.'",
    ),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_names_with_wrappers_are_those_without(bench: Bench, tmp_path: Path, how: str) -> None:
    change, note = WRAPPED[how]
    source = rename(copy(bench.good, tmp_path / "wrapped"), change)

    report = require_same(bench, source, bench.good)

    assert any(note in each for each in report.notes)


def test_wrapped_dora_keeps_its_magnitudes(bench: Bench, tmp_path: Path) -> None:
    original = tiny.write_adapter(tmp_path / "dora", bench.base, tiny.lora(r=2, use_dora=True))
    source = copy(original, tmp_path / "wrapped")
    rename(source, lambda key: "module." + re.sub("(lora_[AB]|vector)", r"\1.default", key))

    require_same(bench, source, original)


@pytest.mark.parametrize("again", ["_orig_mod.", ""])
def test_two_adapters_in_one_file_are_not_mixed(bench: Bench, tmp_path: Path, again: str) -> None:
    source = copy(bench.good, tmp_path / "two")
    tensors = load_file(source / WEIGHTS)
    other = {re.sub(r"(lora_[AB])\.", r"\1.other.", key): t + 1 for key, t in tensors.items()}
    wrapped = {key.replace(PREFIX, PREFIX + "_orig_mod."): t + 1 for key, t in tensors.items()}
    save_file(tensors | (wrapped if again else other), source / WEIGHTS)

    with pytest.raises(WorkbenchError, match=r"two tensors for one part|2 adapters in one file"):
        do(bench, rq.LoadAdapter(source=str(source)))


ANCHORED = (
    "^model.layers.0.self_attn.v_proj",
    "^model\\.layers\\.0\\.self_attn\\.v_proj$",
    "model.layers.0.self_attn.v_proj",
    "0.self_attn.v_proj$",
)


@pytest.mark.parametrize("pattern", ANCHORED)
def test_anchored_patterns_mean_what_they_mean_in_peft(
    bench: Bench, tmp_path: Path, pattern: str
) -> None:
    alphas = {pattern: 32}
    config = tiny.lora(r=4, lora_alpha=6, rank_pattern={pattern: 2}, alpha_pattern=alphas)
    original = tiny.write_adapter(tmp_path / "made", bench.base, config, seed=2)
    source = copy(original, tmp_path / "with an entry that PEFT ignores")
    say(source, alpha_pattern={"^up_proj": 99, **alphas})

    report = require_same(bench, source, original)

    assert report.ranks == [2, 4]


LAYER = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("place", "pattern"),
    [
        ("_orig_mod.model.", "^_orig_mod\\.model.layers.0.self_attn.q_proj"),
        ("_orig_mod.model.", f"^{LAYER}"),
        ("_orig_mod.model.", "layers.0.self_attn.q_proj"),
        ("model.language_model.", "^model.language_model.layers.0.self_attn.q_proj$"),
        ("language_model.model.", "^language_model.model.layers.0.self_attn.q_proj"),
        ("", "^layers.0.self_attn.q_proj"),
    ],
)
def test_patterns_follow_layers_that_get_another_name(
    bench: Bench, tmp_path: Path, place: str, pattern: str
) -> None:
    config = tiny.lora(r=4, alpha_pattern={f"^{LAYER}": 99}, rank_pattern={f"^{LAYER}": 2})
    original = tiny.write_adapter(tmp_path / "made", bench.base, config, seed=2)
    source = copy(original, tmp_path / "wrapped")
    rename(source, lambda key: key.replace(f"{PREFIX}model.", f"{PREFIX}{place}"))
    say(source, alpha_pattern={pattern: 99}, rank_pattern={pattern: 2})

    require_same(bench, source, original)


def test_regular_expressions_beside_wrappers_are_never_run(bench: Bench, tmp_path: Path) -> None:
    source = rename(copy(bench.good, tmp_path / "wrapped"), lambda key: f"module.{key}")
    say(source, rank_pattern={"(([a-z0-9_.])+)+!": 4})
    with pytest.raises(Unsupported, match="has regular expressions, which could block the app"):
        do(bench, rq.LoadAdapter(source=str(source)))


@pytest.mark.parametrize(
    "pattern",
    [
        "(([a-z0-9_.])+)+!", "^(a|aa)+$", ".*\\.q_proj", "q_proj|v_proj", "^model.layers.[0-9].x",
        "a" * 300, "^", "", "q_proj\\", "\\d", "q_proj\n", "(?i)q_proj", "^^q_proj", "q$_proj",
    ],
)  # fmt: skip
def test_true_regular_expressions_stay_refused(bench: Bench, tmp_path: Path, pattern: str) -> None:
    source = say(copy(bench.good, tmp_path / "odd"), alpha_pattern={pattern: 4})
    with pytest.raises(Unsupported, match="has regular expressions, which could block the app"):
        do(bench, rq.LoadAdapter(source=str(source)))


HARMLESS: dict[str, dict[str, Any]] = {
    "unsloth": {"unsloth_fixed": True},
    "nothing": {"new_a": None, "new_b": False, "new_c": [], "new_d": {}, "new_e": "", "new_f": 0},
    "an object of nothing": {"runtime_options": {"offload": False, "size": None}},
    "sizes of what is off": {"use_super": False, "super_group_size": 16},
    "a description": {"author": "someone", "tags": ["a"], "_comment": "x"},
}


@pytest.mark.parametrize("fields", HARMLESS.values(), ids=HARMLESS)
def test_settings_that_change_nothing_are_left_out_with_a_note(
    bench: Bench, tmp_path: Path, fields: dict[str, Any]
) -> None:
    source = say(copy(bench.good, tmp_path / "newer"), **fields)

    report = require_same(bench, source, bench.good)

    for field in fields:
        assert repr(field) in report.notes[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"super_group_size": 16},
        {"use_super": True, "super_group_size": 16},
        {"enable_lora": [True, False]},
        {"runtime_options": {"scale": 2}},
        {"use_lora": False, "lora_boost": 2.5},
    ],
)
def test_settings_that_may_change_the_answers_are_refused_with_their_value(
    bench: Bench, tmp_path: Path, fields: dict[str, Any]
) -> None:
    source = say(copy(bench.good, tmp_path / "newer"), **fields)
    field, value = next(
        (field, value) for field, value in fields.items() if value not in (None, False)
    )
    with pytest.raises(Unsupported, match=re.escape(f"{field!r} = {value}")):
        do(bench, rq.LoadAdapter(source=str(source)))


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ],
)
def test_a_byte_order_mark_is_left_out(
    bench: Bench, tmp_path: Path, mark: bytes, encoding: str
) -> None:
    source = copy(bench.good, tmp_path / "marked")
    text = (source / CONFIG).read_text(encoding="utf-8")
    (source / CONFIG).write_bytes(mark + text.encode(encoding))

    report = require_same(bench, source, bench.good)

    assert "byte-order mark" in report.notes[0]


def test_pissa_with_a_mark_and_wrappers_becomes_the_same_plain_lora(
    bench: Bench, tmp_path: Path
) -> None:
    """Its change is computed by PEFT, which reads neither."""
    config = tiny.lora(r=3, init_lora_weights="pissa")
    original = tiny.write_adapter(tmp_path / "pissa", bench.base, config, seed=9)
    source = rename(copy(original, tmp_path / "odd"), lambda key: f"module.{key}")
    text = (source / CONFIG).read_text(encoding="utf-8")
    (source / CONFIG).write_bytes(codecs.BOM_UTF8 + text.encode())

    do(bench, rq.LoadAdapter(source=str(source), name="newcomer"))

    expected = tiny.plain_scores(bench.base, original)
    assert tiny.scores(bench.service, [("newcomer", 1.0)]) == pytest.approx(expected, rel=1e-4)


def test_what_came_is_never_written_to(bench: Bench, tmp_path: Path) -> None:
    source = say(copy(bench.good, tmp_path / "odd"), unsloth_fixed=True)
    rename(source, lambda key: f"module.{key}")
    before = {path.name: path.read_bytes() for path in source.iterdir()}

    do(bench, rq.InspectAdapter(source=str(source)))
    do(bench, rq.LoadAdapter(source=str(source)))

    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


def test_tensors_that_share_their_bytes_are_not_copied(bench: Bench, tmp_path: Path) -> None:
    """A small file would otherwise unpack to as much as its header says."""
    source = copy(bench.good, tmp_path / "shared")
    shape = [1000, 1000]
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4_000_000]}
    header = {f"module.{PREFIX}model.layers.{n}.x.lora_A.weight": entry for n in range(10_000)}
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(4_000_000)
    (source / WEIGHTS).write_bytes(content)

    with pytest.raises(ModelError, match="damaged or cut off"):
        do(bench, rq.LoadAdapter(source=str(source)))


def test_a_tensor_with_a_name_of_megabytes_is_refused_soon(bench: Bench, tmp_path: Path) -> None:
    source = copy(bench.good, tmp_path / "long")
    key = "lora_A.weight" + ".lora_A.weight" * 500_000
    save_file({key: torch.ones(1)}, source / WEIGHTS)
    with pytest.raises(Unsupported, match="which is not an adapter weight"):
        do(bench, rq.LoadAdapter(source=str(source)))
