"""How data sets of the Hub, their configurations and splits are spelled."""

import pytest

from backend.errors import InvalidRequest
from backend.hub_names import HubName, names_data_set, read
from backend.permissions import looks_like_path, on_hub

PAGE = "https://huggingface.co/datasets/owner/set"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("owner/set", HubName("owner/set")),
        ("squad", HubName("squad")),
        ("owner/set:20231101.en", HubName("owner/set", "", "20231101.en")),
        ("owner/set:en (plain):train", HubName("owner/set", "", "en (plain)", "train")),
        ("owner/set::test", HubName("owner/set", "", "", "test")),
        ("owner/set@v1.0", HubName("owner/set", "v1.0")),
        ("owner/set@refs/pr/3:en:train", HubName("owner/set", "refs/pr/3", "en", "train")),
        (PAGE, HubName("owner/set")),
        (f"{PAGE}/", HubName("owner/set")),
        ("huggingface.co/datasets/owner/set", HubName("owner/set")),
        ("https://hf.co/datasets/squad", HubName("squad")),
        ("https://huggingface.co/datasets/squad/viewer", HubName("squad")),
        (f"{PAGE}/viewer/en", HubName("owner/set", "", "en")),
        (f"{PAGE}/viewer/a%20b/test?row=3#top", HubName("owner/set", "", "a b", "test")),
        (f"{PAGE}/tree/main", HubName("owner/set", "main")),
        (f"{PAGE}/tree/refs%2Fconvert%2Fparquet", HubName("owner/set", "refs/convert/parquet")),
    ],
)
def test_what_names_a_data_set_is_read(source: str, name: HubName) -> None:
    assert read(source) == name
    assert names_data_set(source)
    assert on_hub(source)
    assert not looks_like_path(source)
    assert read(str(name)) == name


@pytest.mark.parametrize(
    "source",
    [
        "C:train", "C:\\data\\train", "c:/data/train", "./a:b", "/data/a:b", "~/a:b",
        "data.csv", "data.csv:en", "owner/set.jsonl", "owner/set@home/train.jsonl",
        "https://example.org/owner/set", "file:///etc/passwd", "hf://datasets/owner/set",
        "zip://a.csv::https://example.org/x", "owner/set:../../etc", "owner/set:a\\b",
        "https://huggingface.co/owner/model",
    ],
)  # fmt: skip
def test_what_is_a_path_or_another_address_stays_one(source: str) -> None:
    assert not names_data_set(source)
    assert looks_like_path(source)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("owner/set:a:b:c", "'owner/set:a:b:c' has too many parts after the name."),
        ("owner/set::train[:100]", "'owner/set::train[:100]' has too many parts after the name."),
        ("owner/set::train[50]", "'train[50]' cannot be the name of a split."),
        ("owner/set:..", "'..' cannot be the name of a configuration."),
        ("owner/set:a|b", "'a|b' cannot be the name of a configuration."),
        ("owner/set:a\nb", "'a\\nb' cannot be the name of a configuration."),
        ("owner/set:" + "x" * 300, f"'{'x' * 200}' cannot be the name of a configuration."),
        ("owner/set@", "'owner/set@' has no revision after the @."),
        ("owner/set@../x", "'../x' cannot be the name of a revision."),
        (f"{PAGE}/viewer/..%2F..%2Fx", "'../../x' cannot be the name of a configuration."),
        (f"{PAGE}/blob/main/a.csv", "that cannot be named alone."),
        (f"{PAGE}/tree/main/en", "that cannot be named alone."),
    ],
)
def test_a_wrong_spelling_is_said(source: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(source)

    assert sentence in str(caught.value)
