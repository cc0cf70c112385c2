from pathlib import Path

import pytest

from ui.components import units


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "under 1 s"),
        (40.4, "40 s"),
        (59.6, "1 min"),
        (80, "1 min 20 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (90_000, "1 day 1 h"),
    ],
)
def test_durations_are_said_in_two_units_at_most(seconds: float, said: str) -> None:
    assert units.duration(seconds) == said


def test_memory_is_said_in_the_unit_that_fits() -> None:
    sizes = [12, 3 * 1024, 412 * 1024**2, 1.6 * 1024**3, 24 * 1024**3]
    assert [units.size(n) for n in sizes] == ["12 bytes", "3 KB", "412 MB", "1.6 GB", "24 GB"]


def test_shares_reach_nothing_and_everything_only_where_exact() -> None:
    shares = [0, 0.0004, 0.5, 0.996, 1]
    assert [units.percent(s) for s in shares] == ["0 %", "0.1 %", "50 %", "99 %", "100 %"]


def test_chances_close_to_nothing_and_everything_are_told_apart() -> None:
    shares = [0, 8.4e-07, 0.004, 0.12, 0.995, 0.99999, 1]
    said = ["0 %", "< 0.1 %", "0.4 %", "12 %", "99.5 %", "> 99.9 %", "100 %"]
    assert [units.chance(s) for s in shares] == said


def test_a_plain_name_lies_in_the_workspace_and_a_path_stays(tmp_path: Path) -> None:
    assert units.whole_path(" my model ", tmp_path) == str(tmp_path / "my model")
    assert units.whole_path("/elsewhere/x", tmp_path) == "/elsewhere/x"
    assert units.whole_path("~/x", tmp_path) == str(Path.home() / "x")


def test_part_of_a_model_tells_share_and_count() -> None:
    assert units.part_of_model(31_744, 3_500_000) == "0.9 % of the model (31,744 parameters)"
    assert units.part_of_model(10, 3_500_000).startswith("under 0.1 %")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (4.13, "4.1"),
        (0.318, "0.32"),
        (0.00412, "0.0041"),
        (None, "-"),
        (float("nan"), "not a number"),
    ],
)
def test_losses_keep_two_digits(value: float | None, said: str) -> None:
    assert units.loss(value) == said


def test_large_counts_are_short() -> None:
    assert [units.short_count(n) for n in (950, 3_850_000, 494_000_000, 1_200_000_000)] == [
        "950",
        "3.9 M",
        "494 M",
        "1.2 B",
    ]


def test_long_paths_keep_both_ends() -> None:
    short = units.shorten("/a/very/long/path/that/does/not/fit/into/its/place/model", 24)
    assert len(short) == 24
    assert short.startswith("/a/very")
    assert short.endswith("place/model")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/data/models/llama/q4.gguf", "q4.gguf"),
        ("~/models/tiny/", "tiny"),
        (r"C:\models\tiny", "tiny"),
        ("owner/name", "owner/name"),
        ("starter", "starter"),
        ("/", "/"),
    ],
)
def test_of_a_path_its_last_part_is_said(source: str, name: str) -> None:
    assert units.source_name(source) == name


def test_a_method_says_whether_it_trains_the_experts() -> None:
    assert units.method("LoRA", 8) == "LoRA, rank 8"
    assert units.method("LoRA", 8, experts=True) == "LoRA with experts, rank 8"
