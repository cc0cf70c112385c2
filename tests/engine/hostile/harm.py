"""What is done to a good adapter folder to make it one that would harm."""

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Q = "base_model.model.model.layers.0.self_attn.q_proj"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HANGS = "(([a-z0-9_.])+)+!"
Harm = Callable[[Path], Path]


def said(**fields: Any) -> Harm:
    """Change the configuration."""

    def harm(folder: Path) -> Path:
        path = folder / CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
        return folder

    return harm


def written(text: str) -> Harm:
    """Replace the configuration's text."""

    def harm(folder: Path) -> Path:
        (folder / CONFIG).write_text(text)
        return folder

    return harm


def holding(change: Callable[[dict[str, torch.Tensor]], Any]) -> Harm:
    """Change the tensors."""

    def harm(folder: Path) -> Path:
        tensors = {key: tensor.clone() for key, tensor in load_file(folder / WEIGHTS).items()}
        change(tensors)
        save_file(tensors, folder / WEIGHTS)
        return folder

    return harm


def both(*harms: Harm) -> Harm:
    def harm(folder: Path) -> Path:
        for each in harms:
            folder = each(folder)
        return folder

    return harm


def with_tensor(key: str, *shape: int, dtype: torch.dtype = torch.float32) -> Harm:
    return holding(lambda tensors: tensors.update({key: torch.ones(shape, dtype=dtype)}))


def with_number(value: float) -> Harm:
    return holding(lambda tensors: tensors[f"{Q}.lora_B.weight"][0].fill_(value))


def without(*parts: str) -> Harm:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if any(part in key for part in parts)]:
            del tensors[key]

    return holding(change)


def moved(old: str, new: str) -> Harm:
    """Call layers otherwise."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key in [key for key in tensors if old in key]:
            tensors[key.replace(old, new)] = tensors.pop(key)

    return holding(change)


def pickled(folder: Path) -> Path:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()
    return folder


def no_weights(folder: Path) -> Path:
    (folder / WEIGHTS).unlink()
    return folder


def cut_off(folder: Path) -> Path:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])
    return folder


def huge_header(folder: Path) -> Path:
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", 2**62) + b"{}")
    return folder


def in_place_of(name: str, make: Callable[[Path], Any]) -> Harm:
    """Put something else where a file was."""

    def harm(folder: Path) -> Path:
        (folder / name).unlink()
        make(folder / name)
        return folder

    return harm


def sparse(path: Path, size: int, *, start: bytes = b"") -> None:
    """Write a file that says it is large and takes no space."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)


def padded_list(size: int) -> Harm:
    """Zip the folder and let its list of files be as long as `size`."""

    def harm(folder: Path) -> Path:
        path = zipped()(folder)
        content = path.read_bytes()
        at = content.rindex(b"PK\x05\x06")
        start = int.from_bytes(content[at + 16 : at + 20], "little")
        end = bytearray(content[at:])
        end[12:16] = (at - start + size).to_bytes(4, "little")
        path.write_bytes(content[:at] + bytes(size) + end)
        return path

    return harm


def zipped(
    *more: tuple[str, str],
    inside: str = "adapter/",
    leave_out: tuple[str, ...] = (),
    how: int = zipfile.ZIP_DEFLATED,
) -> Harm:
    """Zip the folder with further members."""

    def harm(folder: Path) -> Path:
        path = folder.parent / "bad.zip"
        with zipfile.ZipFile(path, "w", how) as archive:
            for file in sorted(folder.iterdir()):
                if file.name not in leave_out:
                    archive.write(file, inside + file.name)
            for name, content in more:
                archive.writestr(name, content)
        return path

    return harm


def not_a_zip(folder: Path) -> Path:
    path = folder.parent / "bad.zip"
    path.write_bytes(b"MZ" + bytes(100))
    return path


def another_ending(folder: Path) -> Path:
    return zipped()(folder).rename(folder.parent / "bad.tar")


def patched(offset: int, value: bytes, of: bytes) -> Harm:
    """Overwrite bytes of the headers that begin with `of`."""

    def harm(folder: Path) -> Path:
        path = zipped()(folder)
        content = bytearray(path.read_bytes())
        start = content.find(of)
        while start >= 0:
            content[start + offset : start + offset + len(value)] = value
            start = content.find(of, start + 4)
        path.write_bytes(content)
        return path

    return harm


LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"
