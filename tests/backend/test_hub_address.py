"""Addresses of adapters on the Hub, in every spelling that people copy."""

import pytest

from backend.errors import InvalidRequest
from backend.hub_address import HubAddress, HubFile, gguf_file, is_address, parse

WHOLE = HubAddress("owner/repo", "sub/folder", "v1")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("owner/repo", HubAddress("owner/repo")),
        ("owner/repo/", HubAddress("owner/repo")),
        ("gpt2-adapter", HubAddress("gpt2-adapter")),
        ("gpt2-adapter@v1", HubAddress("gpt2-adapter", "", "v1")),
        ("owner/repo/checkpoint-20", HubAddress("owner/repo", "checkpoint-20")),
        ("owner/repo/sub/folder@v1", WHOLE),
        ("owner/repo@v1/sub/folder", WHOLE),
        ("owner/repo@refs/pr/3", HubAddress("owner/repo", "", "refs/pr/3")),
        ("owner/repo@refs/pr/3/sub", HubAddress("owner/repo", "sub", "refs/pr/3")),
        ("owner/repo/sub@refs/pr/3", HubAddress("owner/repo", "sub", "refs/pr/3")),
        ("https://huggingface.co/owner/repo", HubAddress("owner/repo")),
        ("http://www.huggingface.co/owner/repo/", HubAddress("owner/repo")),
        ("huggingface.co/owner/repo", HubAddress("owner/repo")),
        ("https://hf.co/owner/repo?library=peft#files", HubAddress("owner/repo")),
        ("https://huggingface.co/owner/repo/tree/main", HubAddress("owner/repo", "", "main")),
        ("https://huggingface.co/owner/repo/tree/v1/sub/folder", WHOLE),
        ("https://huggingface.co/owner/repo/tree/v1/sub%2Ffolder", WHOLE),
        ("https://huggingface.co/owner/repo/tree/my%2Fbranch/sub",
         HubAddress("owner/repo", "sub", "my/branch")),
        ("https://huggingface.co/owner/repo/tree/refs%2Fpr%2F3/sub",
         HubAddress("owner/repo", "sub", "refs/pr/3")),
        ("https://huggingface.co/owner/repo/blob/v1/sub/folder/adapter_config.json", WHOLE),
        ("https://huggingface.co/owner/repo/resolve/v1/adapter_model.safetensors?download=true",
         HubAddress("owner/repo", "", "v1")),
        ("hf://owner/repo", HubAddress("owner/repo")),
        ("hf://owner/repo@v1/sub/folder", WHOLE),
        ("hf://models/owner/repo/sub/folder@v1", WHOLE),
        ("https://huggingface.co/owner/repo/discussions/3", None),
        ("https://huggingface.co/spaces/owner/repo", None),
        ("/home/owner/repo", None),
        ("./owner/repo", None),
        ("~/owner/repo", None),
        ("owner\\repo\\sub", None),
        (" owner/repo", None),
        ("", None),
    ],
)  # fmt: skip
def test_an_address_names_repository_folder_and_revision(
    source: str, expected: HubAddress | None
) -> None:
    if expected is None:
        with pytest.raises(InvalidRequest):
            parse(source)
    else:
        assert parse(source) == expected
        assert is_address(source)
        assert parse(str(expected)) == expected


def test_a_data_set_is_named_as_such() -> None:
    with pytest.raises(InvalidRequest, match="is a data set on the Hub, and not an adapter"):
        parse("https://huggingface.co/datasets/owner/repo")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("owner/repo:file.gguf", HubFile("owner/repo", "file.gguf")),
        ("owner/repo:sub/file-Q4_K_M.GGUF", HubFile("owner/repo", "sub/file-Q4_K_M.GGUF")),
        ("owner/repo/file.gguf", HubFile("owner/repo", "file.gguf")),
        ("owner/repo/a/b/file.gguf", HubFile("owner/repo", "a/b/file.gguf")),
        ("owner/repo@v1:file.gguf", HubFile("owner/repo", "file.gguf", "v1")),
        ("owner/repo@v1/sub/file.gguf", HubFile("owner/repo", "sub/file.gguf", "v1")),
        ("https://huggingface.co/owner/repo/blob/main/file.gguf",
         HubFile("owner/repo", "file.gguf", "main")),
        ("https://hf.co/owner/repo/resolve/v1/sub/file.gguf?download=true",
         HubFile("owner/repo", "sub/file.gguf", "v1")),
        ("hf://owner/repo/file.gguf", HubFile("owner/repo", "file.gguf")),
        ("file.gguf", None),
        ("owner/file.gguf", None),
        ("/home/owner/file.gguf", None),
        ("./owner/repo/file.gguf", None),
        ("~/owner/repo/file.gguf", None),
        ("../a/b/file.gguf", None),
        ("C:/models/file.gguf", None),
        ("C:\\models\\file.gguf", None),
        ("owner/repo", None),
        ("owner/repo:Q4_K_M", None),
        ("owner/repo:../file.gguf", None),
        ("https://huggingface.co/datasets/owner/repo/blob/main/file.gguf", None),
        ("https://example.com/owner/repo/file.gguf", None),
    ],
)  # fmt: skip
def test_a_gguf_file_on_the_hub_has_an_address(source: str, expected: HubFile | None) -> None:
    assert gguf_file(source) == expected
