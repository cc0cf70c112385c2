"""Base folders that would hang the app or fill its memory: refused before anything is built."""

import json
import os
import shutil
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend import requests as rq
from backend.engine.core.job_control import Control
from backend.engine.models import loading, model_folder
from backend.engine.models.model_limits import _most
from backend.errors import ModelError, WorkbenchError
from backend.files import read_limits
from backend.settings import STARTER
from tests.engine.hostile.harm import sparse

SILENT = Control(0, lambda message: None)
DAMAGED = "Its config.json is damaged, or of another model: download it again."
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the starter model, for a test to spoil."""
    copy = tmp_path / "bad"
    shutil.copytree(STARTER / "model", copy)
    return copy


def refusal(use: Callable[[], Any]) -> str:
    """Return why something is refused; a minute without an answer is a failure."""
    found: list[BaseException] = []

    def run() -> None:
        try:
            use()
        except BaseException as error:
            found.append(error)

    running = threading.Thread(target=run, daemon=True)
    running.start()
    running.join(60)
    assert not running.is_alive(), "It hangs."
    assert found, "It was taken."
    assert isinstance(found[0], WorkbenchError), repr(found[0])
    return str(found[0])


def load(folder: Path) -> Callable[[], Any]:
    return lambda: loading.prepare(rq.LoadModel(source=str(folder)), SILENT)


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# -- numbers in config.json ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"num_hidden_layers": 10_000_000},
            "says num_hidden_layers = 10,000,000, and from 0 to 2,000 are possible.",
        ),
        (
            {"num_hidden_layers": -1},
            "says num_hidden_layers = -1, and from 0 to 2,000 are possible.",
        ),
        (
            {"num_hidden_layers": 1e12},
            "says num_hidden_layers = 1,000,000,000,000.0, and from 0 to 2,000 are possible.",
        ),
        ({"hidden_size": 10**9}, "says hidden_size = 1,000,000,000, and from 0 to 134,217,728 are"),
        ({"vocab_size": 10**12}, "says vocab_size = 1,000,000,000,000, and from 0 to 134,217,728"),
        ({"vocab_size": -5}, "says vocab_size = -5, and from 0 to 134,217,728 are possible."),
        ({"text_config": {"num_layers": 9999}}, "says num_layers = 9,999, and from 0 to 2,000 are"),
        ({"num_local_experts": 10**6}, "says num_local_experts = 1,000,000, and from 0 to 10,000"),
        (
            {"num_hidden_layers": 1000, "n_routed_experts": 9000},
            "says 9,000,000 experts in all layers, and at most 200,000 are possible.",
        ),
        ({"max_position_embeddings": 10**18}, "says max_position_embeddings = 1,000,000,000,000,0"),
        (
            {"num_hidden_layers": 0},
            "says num_hidden_layers = '0', which is not a number of at least",
        ),
        ({"vocab_size": True}, "cannot be used: Validation error for field 'vocab_size'"),
        (
            {"num_hidden_layers": 1900},
            "says num_hidden_layers = 1,900, but its weight files hold 39 tensors, too few for so "
            "many layers.",
        ),
        ({"vocab_size": 10**8}, "says 100,000,000 tokens of "),
        ({"intermediate_size": 10**8}, "describes "),
    ],
)
def test_a_number_beyond_every_model_is_refused(
    folder: Path, changes: dict[str, Any], said: str
) -> None:
    configure(folder, **changes)

    found = refusal(load(folder))

    assert found.startswith(f"bad/config.json {said}")
    assert found.endswith(DAMAGED) or "cannot be used" in said
    assert refusal(lambda: model_folder.skeleton(folder)) == found


@pytest.mark.parametrize("value", ["many", [], {}, "1000000000000"])
def test_a_value_of_another_kind_is_refused(folder: Path, value: Any) -> None:
    configure(folder, num_hidden_layers=value)

    assert refusal(load(folder)).startswith("bad/config.json ")


def test_a_configuration_alone_is_bounded_too() -> None:
    config = json.loads((STARTER / "model" / "config.json").read_text())

    with pytest.raises(ModelError, match="num_hidden_layers = 5,000, and from 0 to 2,000"):
        model_folder.read_config({**config, "num_hidden_layers": 5000})


@pytest.mark.parametrize(
    ("key", "most"),
    [
        ("num_hidden_layers", read_limits.LAYERS),
        ("n_layer", read_limits.LAYERS),
        ("n_layers", read_limits.LAYERS),
        ("num_nextn_predict_layers", read_limits.LAYERS),
        ("decoder_layers", read_limits.LAYERS),
        ("n_routed_experts", read_limits.EXPERTS),
        ("num_experts", read_limits.EXPERTS),
        ("moe_num_experts", read_limits.EXPERTS),
        ("moe_intermediate_size", read_limits.SIZE),
        ("n_embd", read_limits.SIZE),
        ("d_model", read_limits.SIZE),
        ("head_dim", read_limits.SIZE),
        # What may well be below zero, or larger.
        ("rope_theta", None),
        ("eos_token_id", None),
        ("pad_token_id", None),
        ("vision_feature_layer", None),
        ("num_experts_per_tok", None),
        ("total_parameters", None),
    ],
)
def test_what_is_bounded_by_its_name(key: str, most: int | None) -> None:
    assert _most(key) == most


# -- files ---------------------------------------------------------------------------------------


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("make", "kind"), [(fifo, "a FIFO"), (device, "a device"), (Path.mkdir, "a folder")]
)
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "model.safetensors",
        INDEX,
        "tokenizer.model",
    ],
)
def test_what_is_no_file_is_refused_and_never_waited_for(
    folder: Path, name: str, make: Callable[[Path], None], kind: str
) -> None:
    (folder / name).unlink(missing_ok=True)
    make(folder / name)

    found = refusal(load(folder))

    assert found == f"bad/{name} is {kind}, not a file. Put the file itself in its place."


@pytest.mark.parametrize(
    ("name", "size", "most"),
    [
        ("config.json", 5 << 20, "4 MB"),
        ("generation_config.json", 5 << 20, "4 MB"),
        ("tokenizer.json", 1 << 30, "256 MB"),
        ("tokenizer_config.json", 1 << 30, "256 MB"),
        ("merges.txt", 1 << 30, "256 MB"),
        ("tokenizer.model", 1 << 30, "256 MB"),
        ("chat_template.jinja", 2 << 20, "1 MB"),
        ("additional_chat_templates/tools.jinja", 2 << 20, "1 MB"),
        (INDEX, 1 << 30, "64 MB"),
    ],
)
def test_a_file_larger_than_any_of_its_kind_is_refused_unread(
    folder: Path, name: str, size: int, most: str
) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    sparse(folder / name, size)

    found = refusal(load(folder))

    assert found.startswith(f"bad/{Path(name).name} has ")
    assert found.endswith(
        f", and at most {most} are read. Check that it is the file you mean, and get it again."
    )


def test_a_header_longer_than_any_is_refused_unread(folder: Path) -> None:
    sparse(folder / "model.safetensors", 100 << 20, start=struct.pack("<Q", 90 << 20))

    assert refusal(load(folder)) == (
        "The header of model.safetensors has 90 MB, and at most 32 MB are read. "
        "Store it in more files, or download it again."
    )


def test_a_chat_template_inside_the_tokenizer_is_bounded_too(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), "chat_template": "x" * (2 << 20)}
    path.write_text(json.dumps(config))
    (folder / "chat_template.jinja").unlink(missing_ok=True)

    assert refusal(load(folder)).startswith(
        "The chat template of bad has 2,097,152 characters, and at most 1,048,576 are read."
    )


def test_a_folder_of_thousands_of_files_is_no_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_limits, "FOLDER_ENTRIES", 5)

    assert refusal(load(folder)) == (
        "bad holds more than 5 files. Choose the folder that holds the model alone."
    )


def test_large_files_that_are_never_opened_do_no_harm(folder: Path) -> None:
    sparse(folder / "train.jsonl", 5 << 30)
    sparse(folder / "pytorch_model.bin", 5 << 30)
    (folder / "gone.json").symlink_to(folder / "nowhere")
    (folder / "onnx").mkdir()

    assert loading.prepare(rq.LoadModel(source=str(folder)), SILENT).parameters > 0
