"""Each benchmark's quick run works and prints its figure; what it measures then means nothing."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.chat_templates import main as chat_templates
from benchmarks.interleave import Spread, interleaved
from benchmarks.report import RESULTS, Report
from benchmarks.skewed_data import write_skewed
from benchmarks.starter_sets import MARKED
from benchmarks.training_speed import main as training_speed
from tests.engine.templates.traits import TEMPLATES, TOOL_TEMPLATES

FIGURES = {
    "training_speed": "ours / loop",
    "chat_speed": "the base: ours / plain generate",
    "real_training": "ours / packed loop",
    "large_vocabulary": "time of a step: parts / all at once",
    "trainer_script": "ours / script",
    "row_training": "rows: ours / script",
    "svd_blend": "PEFT's time / ours",
    "quantised_training": "nf4: ours / script",
    "qlora_gpu": "ours / script, tokens a second",
    "memory_estimate": "5M, 256 tokens",
    "chart_updates": "update at 10,000 points",
    "side_by_side": "four in turn / side by side",
    "starter_sets": "pirate: right before and after",
    "hotswap": "swap / copy_ of the same bytes",
    "merge_model": "time to merge and save, ours / PEFT",
    "switching": "one switch, ours / set_adapter",
    "loading_adapters": "time for all, ours / load_adapter",
    "data_shapes": "rows silently wrong",
    "architectures": "training lost, or refused after Ready",
    "tokenising": "our second run",
    "oracle": "steps that agree with plain PEFT",
}
FIGURES_OF_THE_APP = {
    "startup": "PyTorch in the page's process",
    "event_overhead": "share of a core while training",
    "steering": "pause: seconds beyond one step",
    "page_latency": "second tab opened until it shows",
    "wait_policy": "ours / PASSIVE, beside an open page",
    "crash_recovery": "resumed runs equal to an undisturbed one, bit for bit",
}


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Run a command's quick mode and return what it prints."""

    def run(name: str) -> str:
        kept = set(RESULTS.glob("*"))
        assert importlib.import_module(f"benchmarks.{name}").main(["--quick"]) == 0
        assert set(RESULTS.glob("*")) == kept
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", FIGURES)
def test_quick_run_prints_its_figure(name: str, printed: Callable[[str], str]):
    text = printed(name)
    assert FIGURES[name] in text
    assert f"- command: `python -m benchmarks.{name} --quick`" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES_OF_THE_APP)
def test_quick_run_with_the_real_app_prints_its_figure(name: str, printed: Callable[[str], str]):
    assert FIGURES_OF_THE_APP[name] in printed(name)


def test_quick_figures_are_never_kept(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        training_speed(["--quick", "--save"])
    assert "worth keeping" in capsys.readouterr().err


def test_sides_take_turns_and_the_order_changes():
    order: list[str] = []
    found = interleaved(
        lambda: order.append("ours") or 3.0, lambda: order.append("peer") or 2.0, pairs=3
    )
    assert order == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert found.ratios(float).median == 1.5


def test_a_spread_shows_median_and_both_ends():
    assert f"{Spread([1.0, 3.0, 2.0]):.1f}" == "2.0 (1.0 to 3.0, n=3)"


def test_a_report_names_the_command_and_says_what_is_missed():
    report = Report("some_speed", "Some speed", ["--pairs", "5"])
    report.add("ours / theirs", "0.50", ">= 0.90", good=False)
    assert "| ours / theirs | 0.50 | >= 0.90 | missed |" in report.text()
    assert "`python -m benchmarks.some_speed --pairs 5`" in report.text()


def test_skewed_data_are_the_same_each_time(tmp_path):
    first, again = (write_skewed(tmp_path / name, 20).read_text() for name in ("a", "b"))
    assert first == again


def test_measured_part_of_the_card_is_found():
    card = "before\n<!-- measured -->\nold\n<!-- /measured -->\nafter\n"
    assert MARKED.sub(r"\1new\n\2", card) == card.replace("old", "new")


def test_a_folder_of_templates_is_judged_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, template in enumerate([*TEMPLATES.values(), *TOOL_TEMPLATES.values()]):
        (tmp_path / f"{number:02d}.jinja").write_text(template, encoding="utf-8")

    assert chat_templates(["--folder", str(tmp_path)]) == 0

    text = capsys.readouterr().out
    assert "| right in six plain cases | 100.0% | >= 97% | met |" in text
    assert "| silently wrong in any case | 0 | 0 | met |" in text
    assert "| tool calls right where the template has tools | 100.0% | >= 95% | met |" in text
    assert str(tmp_path) not in text
