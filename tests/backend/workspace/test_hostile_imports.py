"""Exported workspaces that somebody made or changed by hand: refused whole, nothing written."""

import hashlib
import io
import json
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backend import Service
from backend.errors import InvalidRequest, Unsupported, WorkbenchError
from tests.backend.workspaces import Make, content, make, there, zipped

Members = dict[str, bytes]
__all__ = ["make", "there", "zipped"]


@pytest.fixture
def here(make: Make) -> Service:
    return make("here")


def members(zipped: Path) -> Members:
    with zipfile.ZipFile(zipped) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path: Path, files: Members, *, infos: dict[str, zipfile.ZipInfo] | None = None) -> Path:
    """Write a zip whose manifest fits its files, whatever they are."""
    manifest = json.loads(files["manifest.json"])
    manifest["files"] = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
        if name != "manifest.json"
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**files, "manifest.json": json.dumps(manifest).encode()}.items():
            archive.writestr((infos or {}).get(name, name), data)
    return path


def refuse(here: Service, path: Path, kind: type[WorkbenchError], said: str) -> None:
    before = content(here.settings.workspace.parent)
    with pytest.raises(kind, match=said) as caught:
        here.import_workspace(path)
    assert str(caught.value).isprintable()
    assert content(here.settings.workspace.parent) == before


@pytest.mark.parametrize(
    "name",
    [
        "../evil.json", "/etc/evil.json", "adapters/../../evil.json", "..\\evil.json",
        "C:\\evil.json", "adapters/ad_abcdef/../../../evil.json", "runs/../evil.json",
        "workspace.json", "worker.log", "adapters/ad_abcdef/run.sh", "adapters/ad_abcdef/a.pkl",
        "adapters/ad_abcdef/weights.bin", "runs/r1/checkpoints/checkpoint-1/a.py",
        "runs/r1/optimizer.pt", ".import-x/journal.json", "uploads/a/b.jsonl", "runs/r1/a\n.json",
        "runs/r1/.hidden.json", "adapters/ad_abcdef/\u202egnp.json",
    ],
)  # fmt: skip
def test_a_name_that_no_export_has_is_refused(
    here: Service, zipped: Path, tmp_path: Path, name: str
) -> None:
    bad = pack(tmp_path / "bad.zip", {**members(zipped), name: b"{}"})

    refuse(here, bad, Unsupported, "not part of an export")


def test_links_and_devices_are_refused(here: Service, zipped: Path, tmp_path: Path) -> None:
    for kind in (stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO):
        info = zipfile.ZipInfo("runs/r1/note.txt")
        info.external_attr = (kind | 0o777) << 16
        files = {**members(zipped), info.filename: b"/etc/passwd"}
        bad = pack(tmp_path / f"{kind}.zip", files, infos={info.filename: info})

        refuse(here, bad, Unsupported, "a link or a device")


def test_a_bomb_is_refused_before_it_is_unpacked(
    here: Service, zipped: Path, tmp_path: Path
) -> None:
    bad = pack(
        tmp_path / "bad.zip", {**members(zipped), "runs/r1/events.jsonl": bytes(150 * 1024**2)}
    )

    refuse(here, bad, Unsupported, "unpacks to")


def test_members_that_share_their_bytes_are_refused(
    here: Service, zipped: Path, tmp_path: Path
) -> None:
    """The bomb without a ratio: a thousand directory entries that point to one member."""
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("manifest.json", members(zipped)["manifest.json"])
        archive.writestr("runs/r0/events.jsonl", bytes(100_000))
        first = archive.getinfo("runs/r0/events.jsonl")
        for number in range(1, 1000):
            twin = zipfile.ZipInfo(f"runs/r{number}/events.jsonl")
            for field in ("header_offset", "CRC", "compress_size", "file_size", "compress_type"):
                setattr(twin, field, getattr(first, field))
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin

    refuse(here, tmp_path / "bad.zip", Unsupported, "unpacks to")


def test_more_than_the_disk_holds_is_refused(
    here: Service, zipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr("backend.workspace.archive.shutil.disk_usage", lambda _: usage)

    refuse(here, zipped, WorkbenchError, "import needs .* of disk space, but 1000 bytes are free")


def test_two_files_of_one_name_are_refused(here: Service, zipped: Path, tmp_path: Path) -> None:
    files = members(zipped)
    bad = pack(tmp_path / "bad.zip", {**files, "runs/R1/a.json": b"1", "runs/r1/A.json": b"2"})

    refuse(here, bad, Unsupported, "two files with the same name")


def test_an_encrypted_zip_is_refused(here: Service, zipped: Path, tmp_path: Path) -> None:
    data = bytearray(zipped.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 8] |= 1
    (tmp_path / "bad.zip").write_bytes(data)

    refuse(here, tmp_path / "bad.zip", Unsupported, "encrypted")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_zip_that_was_cut_off_is_refused(
    here: Service, zipped: Path, tmp_path: Path, share: float
) -> None:
    data = zipped.read_bytes()
    (tmp_path / "bad.zip").write_bytes(data[: int(len(data) * share)])

    refuse(here, tmp_path / "bad.zip", InvalidRequest, "not an exported workspace")


def flip_in(name: str) -> Callable[[Members], None]:
    def flip(files: Members) -> None:
        whole = next(each for each in files if each.endswith(name))
        files[whole] = files[whole][:-2] + b"zz"

    return flip


def lose(files: Members) -> None:
    del files[next(name for name in files if name.endswith("adapter_config.json"))]


def add(files: Members) -> None:
    files["runs/r1/note.txt"] = b"more"


@pytest.mark.parametrize(
    ("change", "said"),
    [(flip_in(".safetensors"), "is damaged"), (flip_in("events.jsonl"), "is damaged"),
     (lose, "is not complete"), (add, "is not complete")],
)  # fmt: skip
def test_what_was_changed_after_the_export_is_refused(
    here: Service, zipped: Path, tmp_path: Path, change: Callable[[Members], None], said: str
) -> None:
    files = members(zipped)
    change(files)
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)

    refuse(here, tmp_path / "bad.zip", InvalidRequest, said)


@pytest.mark.parametrize("offset", [-1000, 10**9])
def test_a_directory_that_points_elsewhere_is_refused(
    here: Service, zipped: Path, tmp_path: Path, offset: int
) -> None:
    data = bytearray(zipped.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 42 : at + 46] = struct.pack("<i", offset)
    (tmp_path / "bad.zip").write_bytes(data)

    refuse(here, tmp_path / "bad.zip", InvalidRequest, "is damaged|not an exported workspace")


@pytest.mark.parametrize(
    ("manifest", "kind", "said"),
    [
        (b"{", InvalidRequest, "is damaged"),
        (b"[" * 100_000, InvalidRequest, "is damaged"),
        (b'{"kind": "other"}', InvalidRequest, "is damaged"),
        (None, InvalidRequest, "has no manifest.json"),
    ],
)
def test_a_zip_of_something_else_is_refused(
    here: Service, zipped: Path, tmp_path: Path, manifest: bytes | None, kind: Any, said: str
) -> None:
    files = members(zipped)
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        for name, data in files.items():
            if name != "manifest.json":
                archive.writestr(name, data)
        if manifest is not None:
            archive.writestr("manifest.json", manifest)

    refuse(here, tmp_path / "bad.zip", kind, said)


def test_an_export_of_a_newer_app_is_refused(here: Service, zipped: Path, tmp_path: Path) -> None:
    files = members(zipped)
    newer = {**json.loads(files["manifest.json"]), "format": 99, "app_version": "9\x1b[31m.0"}
    files["manifest.json"] = json.dumps(newer).encode()

    refuse(here, pack(tmp_path / "bad.zip", files), Unsupported, "Update the app first")


# --- single adapters and runs that cannot be here: left out, and the rest comes ---


def change_json(files: Members, name: str, /, **changes: object) -> None:
    for each in [each for each in files if each.endswith(name)]:
        files[each] = json.dumps({**json.loads(files[each]), **changes}).encode()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("adapter_config.json", {"target_modules": "(([a-z0-9_.])+)+!"}),
        ("adapter_config.json", {"target_modules": ["(a+)+$"]}),
        ("adapter_config.json", {"init_lora_weights": "pissa"}),
        ("adapter_config.json", {"auto_mapping": {"base_model_class": "os.system"}}),
        ("workbench.json", {"id": "ad_ffffff"}),
        ("workbench.json", {"name": "<script>"}),
        ("workbench.json", {"rank": "many"}),
    ],
)
def test_an_adapter_that_no_library_has_is_left_out(
    here: Service, zipped: Path, tmp_path: Path, name: str, changes: dict[str, object]
) -> None:
    files = members(zipped)
    change_json(files, name, **changes)

    came = here.import_workspace(pack(tmp_path / "bad.zip", files))

    assert came.adapters == []
    assert sum("The adapter ad_" in said for said in came.left_out) == 2
    assert sorted(came.runs) == ["pirate", "polite"]
    assert here.library.all() == []


def test_damaged_weights_leave_the_adapter_out(here: Service, zipped: Path, tmp_path: Path) -> None:
    files = members(zipped)
    for name in [name for name in files if name.endswith("adapter_model.safetensors")]:
        files[name] = struct.pack("<Q", 10**12) + files[name][8:]

    came = here.import_workspace(pack(tmp_path / "bad.zip", files))

    assert came.adapters == []
    assert len(came.left_out) == 2


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("request.json", {"adapter_id": "../../../evil"}),
        ("request.json", {"run_id": "other"}),
        ("request.json", {"created": 1e999}),
        ("request.json", {"train": {}}),
        ("status.json", {"state": "running"}),
        ("status.json", {"state": "queued", "launched": True}),
        ("status.json", {"step": "x"}),
    ],
)
def test_a_run_that_no_workspace_has_is_left_out(
    here: Service, zipped: Path, tmp_path: Path, name: str, changes: dict[str, object]
) -> None:
    files = members(zipped)
    change_json(files, name, **changes)

    came = here.import_workspace(pack(tmp_path / "bad.zip", files))

    assert came.runs == []
    assert sum("The run 2" in said for said in came.left_out) == 2
    assert sorted(came.adapters) == ["mix", "pirate"]
    assert [info.run_id for info in here.library.all()] == [None, None]


def test_a_colour_is_one_of_ours(here: Service, zipped: Path, tmp_path: Path) -> None:
    files = members(zipped)
    for name in ("workbench.json", "request.json"):
        change_json(files, name, colour="red;background:url(//evil)")

    here.import_workspace(pack(tmp_path / "bad.zip", files))

    colours = [each.colour for each in (*here.library.all(), *here.runs.summaries())]
    assert len(colours) == 4
    assert all(colour.startswith("#") and len(colour) == 7 for colour in colours)


def test_nonsense_for_session_and_queue_is_left_out(
    here: Service, zipped: Path, tmp_path: Path
) -> None:
    files = {**members(zipped), "session.json": b"[", "queue.json": b'[{"id": 1}]'}

    came = here.import_workspace(pack(tmp_path / "bad.zip", files))

    assert came.left_out == [
        "The session is left out: session.json is damaged: it is cut off or is not JSON.",
        "The queue is left out: it cannot be read.",
    ]
    assert not here.settings.session_file.exists()
    assert not here.settings.queue_file.exists()


def test_no_zip_at_all_is_a_sentence(here: Service, tmp_path: Path) -> None:
    for number, data in enumerate((b"", b"PK\x05\x06", b"text" * 1000, io.BytesIO().getvalue())):
        (tmp_path / f"{number}.zip").write_bytes(data)
        refuse(here, tmp_path / f"{number}.zip", InvalidRequest, "not an exported workspace")
