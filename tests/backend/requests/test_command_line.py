"""`python -m backend`: the same requests, as a person types them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from backend.settings import PROJECT


def run(workspace: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "backend", "--workspace", str(workspace), *words],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.slow
def test_a_round_from_an_empty_workspace_to_a_scored_adapter(tmp_path: Path) -> None:
    loaded = run(tmp_path, "load-model", "--source", "starter")
    trained = run(
        tmp_path, "train", "--name", "pirate", "--data", "starter:pirate", "--max_steps", "3",
        "--adapter.rank", "4", "--adapter.targets", "q_proj,v_proj", "--tokens_per_step", "128",
        "--precision", "fp32",
    )  # fmt: skip
    listed = run(tmp_path, "runs")
    scored = run(
        tmp_path, "score", "--texts", '["Arr, the cat!"]', "--variants", '[[], [["pirate", 1]]]'
    )

    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout)["name"] == "starter"
    assert trained.returncode == 0, trained.stderr
    result = json.loads(trained.stdout)
    assert (result["adapter"], result["steps"], result["state"]) == ("pirate", 3, "finished")
    assert "Training pirate:" in trained.stderr
    assert Path(result["adapter_path"]).is_relative_to(tmp_path)
    assert listed.returncode == 0
    assert listed.stdout.split()[:3] == [result["run_id"], "finished", "3/3"]
    assert scored.returncode == 0, scored.stderr
    (base,), (adapter,) = json.loads(scored.stdout)["scores"]
    assert base < 0
    assert adapter < 0
    assert base != adapter


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["train", "--name", "x", "--adapter.rank", "0"],
            "Error: Rank must be at least 1, got 0. Try 8.",
        ),
        (["train"], "Error: Name is missing."),
        (
            ["score", "--texts", "oops", "--variants", "[[]]"],
            "Error: Texts must be a list, got 'oops'.",
        ),
        (["resume", "--run_id", "../../etc"], "Error: Run cannot be '../../etc'."),
        (["run", "missing.json"], "Error: missing.json cannot be read: "),
    ],
)
def test_what_cannot_work_ends_with_one_sentence(
    tmp_path: Path, words: list[str], sentence: str
) -> None:
    ended = run(tmp_path, *words)

    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith(sentence)
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "cannot be read: "),
        ("[]", 'is not a JSON object. It must begin {"request": "train", ...}'),
        ('{"request": "fly"}', "Error: There is no operation called 'fly'. Known: load-model,"),
        ('{"request": "train", "nam": "x"}', "nam is not a setting of Train."),
    ],
)
def test_a_request_file_that_cannot_work_ends_with_one_sentence(
    tmp_path: Path, content: str, sentence: str
) -> None:
    file = tmp_path / "request.json"
    file.write_text(content, encoding="utf-8")

    ended = run(tmp_path, "run", str(file))

    assert ended.returncode == 1
    assert sentence in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_workspace_without_runs_lists_nothing(tmp_path: Path) -> None:
    listed = run(tmp_path, "runs")

    assert (listed.returncode, listed.stdout, listed.stderr) == (0, "", "")


def test_the_help_names_every_request_and_field(tmp_path: Path) -> None:
    overview = run(tmp_path, "--help").stdout
    train = run(tmp_path, "train", "--help").stdout

    for name in ("load-model", "train", "resume", "set-active", "chat", "score", "run", "runs"):
        assert f"    {name} " in overview
    for field in ("--name", "--adapter.rank", "--learning_rate", "--tokens_per_step"):
        assert field in train
    assert "The adapter's capacity." in " ".join(train.split())


def test_a_workspace_travels_and_a_problem_is_reported_by_commands(tmp_path: Path) -> None:
    target = tmp_path / "a.zip"

    exported = run(tmp_path / "there", "export-workspace", "--destination", str(target))
    again = run(tmp_path / "there", "export-workspace", "--destination", str(target))
    imported = run(tmp_path / "here", "import-workspace", "--source", str(target))
    reported = run(tmp_path / "here", "report-problem", "--destination", str(tmp_path / "b.zip"))

    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["path"] == str(target)
    assert again.returncode == 1
    assert again.stderr == f"Error: {target} already exists. Choose a new file name.\n"
    assert imported.returncode == 0, imported.stderr
    assert json.loads(imported.stdout)["left_out"] == []
    assert json.loads(reported.stdout)["files"][:2] == ["README.txt", "report.json"]
