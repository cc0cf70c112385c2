"""GGUF files that lie: each is refused with one true sentence, and soon."""

import os
import socket
import struct
from pathlib import Path

import pytest

from backend import Service, Settings
from backend import requests as rq
from backend.engine.core.job_control import Control
from backend.engine.models.gguf import checks, converted, parts, process
from backend.errors import ModelError, NotFound, Stopped, Unsupported, WorkbenchError
from backend.files import gguf_header, read_limits
from tests.engine.models.gguf.crafted import (
    ARCHITECTURE,
    ARRAY,
    STRING,
    TENSORS,
    U32,
    U64,
    Placed,
    crafted,
    listed,
    named,
    number,
    setting,
    text,
)

SILENT = Control(0, lambda message: None)
HUGE = 2**63
FAULTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it is empty"),
    "one byte": (b"G", "it ends within its first bytes"),
    "magic": (crafted(magic=b"GGML"), "it is not a GGUF file"),
    "a zip": (b"PK\3\4" + b"\0" * 64, "it is not a GGUF file"),
    "version 1": (crafted(version=1), "version 1"),
    "version 4": (crafted(version=4), "version 4"),
    "big-endian": (crafted(version=3 << 24), "big-endian"),
    "without counts": (crafted()[:20], "it ends within its counts"),
    "tensor count": (crafted(tensor_count=HUGE), "it says it has 9,223,372,036,854,775,808 ten"),
    "setting count": (crafted(setting_count=HUGE), "it says it has 9,223,372,036,854,775,808 set"),
    "more tensors than there are": (crafted(tensor_count=3000), "dimensions"),
    "more settings than there are": (crafted(setting_count=3), "the name of setting 3 says"),
    "key": (crafted(settings=[struct.pack("<Q", HUGE)]), "the name of setting 1 says it has"),
    "key beyond the end": (crafted(settings=[struct.pack("<Q", 900)], data=b""), "it ends within"),
    "key that is no text": (crafted(settings=[text(b"\xff\xfe")]), "is not text"),
    "string": (
        crafted(settings=[setting("general.name", STRING, struct.pack("<Q", HUGE))]),
        "general.name says it has 9,223,372,036,854,775,808 bytes",
    ),
    "template": (
        crafted(settings=[ARCHITECTURE, named("tokenizer.chat_template", "x" * 2**21)]),
        "tokenizer.chat_template says it has 2,097,152 bytes, and at most 1,048,576",
    ),
    "named template": (
        crafted(settings=[ARCHITECTURE, named("tokenizer.chat_template.tool_use", "x" * 2**21)]),
        "tokenizer.chat_template.tool_use says",
    ),
    "type of a value": (crafted(settings=[setting("a", 77, b"")]), "a has a value of the unknown"),
    "list": (crafted(settings=[listed("a", U32, HUGE)]), "a says it has"),
    "list beyond the end": (crafted(settings=[listed("a", U64, 10**6)]), "it ends within a"),
    "list of strings": (crafted(settings=[listed("a", STRING, HUGE)]), "a says it has"),
    "long token": (
        crafted(settings=[listed("a", STRING, 1, struct.pack("<Q", HUGE))]),
        "a value of a says it has",
    ),
    "list of lists": (
        crafted(settings=[listed("a", ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 10_000)]),
        "a is a list of lists",
    ),
    "list of an unknown type": (crafted(settings=[listed("a", 55, 1)]), "the unknown type 55"),
    "the same key twice": (crafted(settings=[ARCHITECTURE, ARCHITECTURE]), "is there twice"),
    "no architecture": (crafted(settings=[named("general.name", "x")]), "its architecture"),
    "alignment 0": (crafted(settings=[ARCHITECTURE, number("general.alignment", 0)]), "alignment"),
    "alignment 48": (crafted(settings=[ARCHITECTURE, number("general.alignment", 48)]), "alignmen"),
    "alignment 2**31": (
        crafted(settings=[ARCHITECTURE, number("general.alignment", 2**31)]), "its alignment is"
    ),
    "alignment as text": (
        crafted(settings=[ARCHITECTURE, named("general.alignment", "32")]), "its alignment is 32"
    ),
    "no tensors": (crafted(tensors=[]), "it holds no tensors"),
    "no dimensions": (crafted(tensors=[Placed("a", ())]), "has 0 dimensions"),
    "many dimensions": (crafted(tensors=[Placed("a", (1,) * 5)]), "has 5 dimensions"),
    "dimension 0": (crafted(tensors=[Placed("a", (0, 4))]), "its shape is 0 x 4"),
    "dimension": (crafted(tensors=[Placed("a", (2**63,))]), "its shape is 9223372036854775808"),
    "product of dimensions": (crafted(tensors=[Placed("a", (2**33, 2**31))]), "its shape is"),
    "product that is 0 again in 64 bits": (
        crafted(tensors=[Placed("a", (2**32, 2**32))]), "its shape is 4294967296 x 4294967296"
    ),
    "unknown type": (crafted(tensors=[Placed("a", (32,), 200)]), "has the unknown type 200"),
    "removed type": (crafted(tensors=[Placed("a", (32,), 4)]), "has the unknown type 4"),
    "row that is no block": (crafted(tensors=[Placed("a", (33, 2), 2)]), "multiples of 32"),
    "offset outside": (crafted(tensors=[Placed("a", (32,), 0, 2**40)]), "outside of the file"),
    "offset that turns over": (crafted(tensors=[Placed("a", (32,), 0, 2**64 - 32)]), "outside"),
    "offset between": (crafted(tensors=[Placed("a", (32,), 0, 7)]), "outside of the file"),
    "overlap": (crafted(tensors=[Placed("a", (32,)), Placed("b", (32,), 0, 96)]), "overlaps"),
    "the same place": (crafted(tensors=[Placed("a", (32,)), Placed("b", (32,))]), "overlaps"),
    "the same name": (
        crafted(tensors=[Placed("a", (32,)), Placed("a", (32,), 0, 128)]), "'a' is there twice"
    ),
    "long name of a tensor": (crafted(tensors=[Placed("a" * 2000, (32,))]), "the name of a tensor"),
    "cut off": (crafted(data=b"\0" * 600), "outside of the file, which is damaged or cut off"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named(fault: str, tmp_path: Path) -> None:
    content, sentence = FAULTS[fault]
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)

    with pytest.raises((ModelError, Unsupported)) as caught:
        gguf_header.read(file)

    assert sentence in caught.value.what
    assert caught.value.what.startswith("bad.gguf ")
    assert caught.value.cure


def test_what_is_not_crafted_is_read(tmp_path: Path) -> None:
    """So each fault above is refused for its fault alone."""
    file = tmp_path / "good.gguf"
    file.write_bytes(crafted(settings=[ARCHITECTURE, listed("a", U32, 2, b"\0" * 8)]))

    found = gguf_header.read(file)

    assert [each.name for each in found.tensors] == [each.name for each in TENSORS]
    assert found.values["a"] == [0, 0]


@pytest.mark.parametrize("kind", ["folder", "fifo", "socket", "link", "loop", "absent"])
def test_what_is_no_file_is_not_opened(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.gguf"
    if kind == "folder":
        (file / "inner").mkdir(parents=True)
        (file / "inner" / "x.txt").write_text("x")
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind(str(file))
    elif kind == "link":
        file.symlink_to(tmp_path / "nothing")
    elif kind == "loop":
        file.symlink_to(file)

    with pytest.raises((ModelError, NotFound), match=r"bad\.gguf"):
        converted.folder_of([file], tmp_path / "models", SILENT)

    assert not (tmp_path / "models").exists()


# --- in a process of its own ---


def test_a_check_that_takes_too_much_memory_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "bad.gguf"
    numbers = listed("a", 0, 3_900_000, b"\0" * 3_900_000)
    file.write_bytes(crafted(settings=[ARCHITECTURE, *[numbers] * 4]))
    monkeypatch.setattr(read_limits, "GGUF_CHECK_BYTES", 1)

    with pytest.raises(ModelError, match="its header takes too much memory"):
        converted.check([file], SILENT)


def test_a_check_that_never_ends_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(crafted())
    monkeypatch.setattr(read_limits, "GGUF_CHECK_SECONDS", 0.0)

    with pytest.raises(ModelError, match="took longer than 0 seconds and was ended"):
        converted.check([file], SILENT)


def test_a_check_can_be_stopped(tmp_path: Path) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(crafted())
    control = Control(0, lambda message: None)
    control.hear("stop")

    with pytest.raises(Stopped, match=r"Checking bad\.gguf was stopped"):
        converted.check([file], control)


def test_a_process_that_crashes_is_reported(tmp_path: Path) -> None:
    task = {"files": 7, "title": "Checking x.gguf"}

    with pytest.raises(
        WorkbenchError, match=r"Checking x\.gguf was interrupted: its process ended"
    ):
        process.run("gguf-check", task, SILENT, seconds=60)


def test_the_session_survives_a_hostile_file(tmp_path: Path) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(FAULTS["overlap"][0])
    with Service(Settings(workspace=tmp_path / "workspace", runtime="inline")) as service:
        service.start(rq.LoadModel(source="starter")).result(timeout=120)
        job = service.start(rq.LoadModel(source=str(file)))
        with pytest.raises(ModelError, match="overlaps"):
            job.result(timeout=120)

        table = service.start(rq.QuantizationTable(source=str(file)))
        with pytest.raises(ModelError, match="overlaps"):
            table.result(timeout=120)
        assert service.snapshot().base is not None
        assert service.snapshot().phase == "ready"


# --- files that are something else ---


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ([named("general.type", "adapter")], "a LoRA adapter"),
        ([named("general.type", "mmproj")], "the vision or audio part of a model"),
        ([named("general.type", "imatrix")], "a table for quantising"),
        ([named("general.type", "vocab")], "of the kind 'vocab'"),
    ],
)
def test_other_kinds_of_files_are_named(
    settings: list[bytes], sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "other.gguf"
    file.write_bytes(crafted(settings=[ARCHITECTURE, *settings]))

    with pytest.raises(Unsupported, match=sentence):
        converted.check([file], SILENT)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ([number("llama.block_count", 2**31)], "says it has 2147483648 layers"),
        ([number("llama.block_count", 0)], "says it has 0 layers"),
        ([number("llama.block_count", 3)], "says it has 3 layers"),  # of two tensors
        ([], "says it has None layers"),
        (
            [number("llama.block_count", 1)],
            "says its width is None, but its table",
        ),
        (
            [
                number("llama.block_count", 1),
                number("llama.embedding_length", 32),
                number("llama.feed_forward_length", 2**31),
            ],
            "says feed_forward_length = 2,147,483,648",
        ),
        (
            [number("llama.block_count", 1), number("llama.embedding_length", 32)],
            "holds no tokenizer",
        ),
    ],
)
def test_sizes_that_do_not_fit_the_tensors_are_named(
    settings: list[bytes], sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(crafted(settings=[ARCHITECTURE, *settings]))

    with pytest.raises(ModelError, match=sentence):
        checks.about(parts.header_of([file]))
