"""Metadata of a Hub data set: what they say, and hostile ones are refused at once."""

from typing import Any

import pytest
import yaml

from backend.engine.data_files.hub.hub_card import Sizes, card_of, require_own_files
from backend.engine.data_files.hub.hub_data import configuration_of, splits_of
from backend.errors import DataError
from backend.files import read_limits
from backend.hub_names import HubName


def configs(*names: Any, **fields: Any) -> dict[str, Any]:
    return {"configs": [{"config_name": name, "data_files": "x.csv", **fields} for name in names]}


def test_the_default_configuration_is_the_marked_one_or_the_only_one() -> None:
    marked = configs("a", "b")
    marked["configs"][1]["default"] = True

    assert card_of(marked, "o/s").default == "b"
    assert card_of(configs("a", "default"), "o/s").default == "default"
    assert card_of(configs("a"), "o/s").default == "a"
    assert card_of(configs("a", "b"), "o/s").default == ""
    assert card_of({}, "o/s").configurations == ()


def test_licence_and_sizes_are_read_where_they_are_stated() -> None:
    splits = [{"name": "train", "num_bytes": 5, "num_examples": 2}, {"name": "x", "num_bytes": -1}]
    said = {**configs("en"), "license": ["mit", "other"], "dataset_info": {"splits": splits}}
    odd = {"license": {"a": 1}, "dataset_info": [1, {"splits": 3}, {"splits": ["x"]}]}

    card = card_of(said, "o/s")

    assert card.license == "mit, other"
    assert card.size_of("en", "train") == Sizes(2, 5)
    assert card.size_of("en", "x") == Sizes()
    assert card_of(odd, "o/s").license == ""
    assert len(card_of({"license_name": "x" * 9999}, "o/s").license) == 100


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "..", ".", "", "a\nb", "CON|", "x" * 500, None, 3, "a:b", " a"]
)
def test_a_configuration_that_cannot_be_a_folder_is_refused(name: Any) -> None:
    with pytest.raises(DataError, match="which cannot be the name of one"):
        card_of(configs("good", name), "o/s")


def test_too_many_configurations_are_refused() -> None:
    many = configs(*(f"c{number}" for number in range(read_limits.HUB_CONFIGURATIONS + 1)))

    with pytest.raises(DataError, match="has 10,001 configurations, and at most 10,000 are read"):
        card_of(many, "o/s")


def test_thousands_of_configurations_are_named_in_a_short_sentence() -> None:
    card = card_of(configs(*(f"lang-{number}" for number in range(4000))), "o/s")

    with pytest.raises(DataError) as several:
        configuration_of(card, HubName("o/s"))
    with pytest.raises(DataError) as wrong:
        configuration_of(card, HubName("o/s", configuration="lang_3999"))

    assert "has 4,000 configurations: lang-0, lang-1," in str(several.value)
    assert "and 3,980 more." in str(several.value)
    assert "It has lang-3999, " in str(wrong.value)
    assert len(str(several.value)) < 500


def test_a_value_that_stands_everywhere_is_refused() -> None:
    lines = ["a0: &a0 [x.csv, x.csv]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    bomb = yaml.safe_load("\n".join(lines))

    for said in (configs("a") | {"dataset_info": bomb["a9"]}, configs("a", data_dir=bomb["a9"])):
        with pytest.raises(DataError, match="nested too deeply or have too many values"):
            require_own_files(said, "o/s")


def test_deep_nesting_is_refused() -> None:
    deep: Any = "x.csv"
    for _ in range(500):
        deep = [deep]

    with pytest.raises(DataError, match="nested too deeply or have too many values"):
        require_own_files({"configs": [{"config_name": "a", "data_files": deep}]}, "o/s")


def test_splits_under_other_names_are_held_out() -> None:
    name = HubName("o/s")

    assert splits_of(("train", "dev", "eval"), name).held_out == "dev"
    assert splits_of(("train", "eval"), name).held_out == "eval"
    assert splits_of(("train", "extra"), name).held_out == ""
    assert splits_of(("train", "extra"), name).notes == (
        "Other splits of the data set are not used: extra.",
    )
    with pytest.raises(DataError, match=r"has no split 'train'. It has test, validation."):
        splits_of(("test", "validation"), name)
