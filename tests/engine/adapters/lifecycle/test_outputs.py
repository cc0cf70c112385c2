"""Outputs of trainings with checkpoints, in folders, in zips of any system, and on the Hub."""

import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, snapshot_download

from backend import requests as rq
from backend.engine.core import hub_download
from backend.errors import InvalidRequest, ModelError, NotFound
from tests.engine import tiny
from tests.engine.adapters.lifecycle.conftest import Bench, do
from tests.hub_stand_in import HubStandIn, Repository

STEPS = (5, 10, 100)


def output(bench: Bench, folder: Path, *, top: bool = True) -> Path:
    """Write what the Trainer leaves: an adapter at the end, and one for each checkpoint."""
    config = tiny.lora(r=4, target_modules=["q_proj"])
    if top:
        tiny.write_adapter(folder, bench.base, config, seed=1)
    for step in STEPS:
        checkpoint = folder / f"checkpoint-{step}"
        tiny.write_adapter(checkpoint, bench.base, config, seed=step)
        (checkpoint / "optimizer.pt").write_bytes(b"pickled")
        (checkpoint / "trainer_state.json").write_text("{}", encoding="utf-8")
    return folder


def packed(folder: Path, *, name: Callable[[str], str] = str, **more: str) -> Path:
    """Zip a folder in itself, as systems do, with the names that `name` gives."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                inside = file.relative_to(folder.parent).as_posix()
                info = zipfile.ZipInfo(inside)
                info.filename = name(inside)  # ZipInfo itself would change it on Windows
                archive.writestr(info, file.read_bytes())
        for inside, content in more.items():
            archive.writestr(inside, content)
    return path


def scored(bench: Bench, source: object, *, name: str = "newcomer") -> tuple[Any, list[float]]:
    added = do(bench, rq.LoadAdapter(source=str(source), name=name))
    return added, tiny.scores(bench.service, [(name, 1.0)])


def close(expected: list[float]) -> Any:
    return pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("is_zip", [False, True])
def test_the_adapter_at_the_top_is_taken_and_the_checkpoints_are_named(
    bench: Bench, tmp_path: Path, is_zip: bool
) -> None:
    folder = output(bench, tmp_path / "out")
    source = packed(folder) if is_zip else folder

    report = do(bench, rq.InspectAdapter(source=str(source)))
    added, scores = scored(bench, source)

    assert scores == close(tiny.plain_scores(bench.base, folder))
    assert "It holds 4 adapters; the one at the top was taken." in report.notes[0]
    assert "checkpoint-5" in report.notes[0]
    assert added.notes[0] == report.notes[0]
    assert len(report.choices) == 3
    for step, choice in zip(STEPS, report.choices, strict=True):
        _, other = scored(bench, choice, name=f"step {step}")
        assert other == close(tiny.plain_scores(bench.base, folder / f"checkpoint-{step}"))


@pytest.mark.parametrize("is_zip", [False, True])
def test_of_checkpoints_alone_the_newest_by_number_is_taken(
    bench: Bench, tmp_path: Path, is_zip: bool
) -> None:
    folder = output(bench, tmp_path / "out", top=False)
    source = packed(folder) if is_zip else folder

    added, scores = scored(bench, source)

    assert scores == close(tiny.plain_scores(bench.base, folder / "checkpoint-100"))
    assert "checkpoint-100, was taken" in added.notes[0]
    assert "checkpoint-10" in added.adapter.recipe + added.notes[0]


def test_a_killed_training_whose_top_has_no_weights_gives_its_newest_checkpoint(
    bench: Bench, tmp_path: Path
) -> None:
    folder = output(bench, tmp_path / "out")
    (folder / "adapter_model.safetensors").unlink()

    _, scores = scored(bench, folder)

    assert scores == close(tiny.plain_scores(bench.base, folder / "checkpoint-100"))


def test_a_checkpoint_in_a_zip_is_named_like_a_folder(bench: Bench, tmp_path: Path) -> None:
    folder = output(bench, tmp_path / "out")
    source = packed(folder)

    added, scores = scored(bench, source / "checkpoint-10")

    assert scores == close(tiny.plain_scores(bench.base, folder / "checkpoint-10"))
    assert added.notes == [] or "holds" not in added.notes[0]
    own = do(bench, rq.LoadAdapter(source=str(source / "out" / "checkpoint-10")))
    assert own.adapter.name == "out checkpoint-10"
    with pytest.raises(NotFound, match=r"has no adapter in 'checkpoint-11'"):
        do(bench, rq.LoadAdapter(source=str(source / "checkpoint-11")))


def test_a_zip_made_on_windows_or_a_mac_is_read(bench: Bench, tmp_path: Path) -> None:
    folder = output(bench, tmp_path / "out")
    extra = {
        "__MACOSX/out/adapter_config.json": "x",
        "__MACOSX/out/._adapter_config.json": "x",
        "out/.DS_Store": "x",
        "out\\empty\\": "",
    }
    expected = tiny.plain_scores(bench.base, folder)

    for number, name in enumerate((str, lambda inside: inside.replace("/", "\\"))):
        source = packed(folder, name=name, **extra)
        _, scores = scored(bench, source, name=f"newcomer {number}")
        assert scores == close(expected)
        _, other = scored(bench, source / "checkpoint-5", name=f"other {number}")
        assert other == close(tiny.plain_scores(bench.base, folder / "checkpoint-5"))


def test_of_several_runs_one_must_be_chosen(bench: Bench, tmp_path: Path) -> None:
    for name in ("first", "second"):
        output(bench, tmp_path / "runs" / name)

    for source in (tmp_path / "runs", packed(tmp_path / "runs")):
        report = do(bench, rq.InspectAdapter(source=str(source)))
        assert report.verdict == "cannot"
        assert "contains 2 adapter_config.json" in report.reasons[0].what
        assert [Path(choice).name for choice in report.choices] == ["first", "second"]
        with pytest.raises(ModelError, match=r"first, .*second"):
            do(bench, rq.LoadAdapter(source=str(source)))
        _, scores = scored(bench, report.choices[1], name=f"second {source.suffix[1:]}".strip())
        assert scores == close(tiny.plain_scores(bench.base, tmp_path / "runs" / "second"))


def test_links_to_other_folders_are_not_followed(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint-5").symlink_to(bench.good)
    with pytest.raises(ModelError, match=r"has no adapter_config\.json"):
        do(bench, rq.LoadAdapter(source=str(tmp_path / "out")))


def test_thousands_of_checkpoints_are_read_and_a_few_are_named(
    bench: Bench, tmp_path: Path
) -> None:
    folder = shutil.copytree(bench.good, tmp_path / "out")
    checkpoints = {f"out/checkpoint-{step}/adapter_config.json": "{}" for step in range(5000)}

    report = do(bench, rq.InspectAdapter(source=str(packed(folder, **checkpoints))))

    assert report.verdict == "fits"
    assert report.notes[0].endswith("out/checkpoint-19 and 4980 more.")
    assert len(report.choices) == 20


def test_of_a_folder_with_too_many_files_only_the_top_is_taken(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.files.read_limits.FOLDER_ENTRIES", 8)
    whole = output(bench, tmp_path / "out")
    assert do(bench, rq.InspectAdapter(source=str(whole))).choices == ()
    below = output(bench, tmp_path / "below", top=False)
    with pytest.raises(ModelError, match="holds more than 8 files"):
        do(bench, rq.LoadAdapter(source=str(below)))


@pytest.mark.parametrize("name", ["x" * 400, "a.zip/" + "x" * 400, "a.zip/b", "none/b"])
def test_what_is_not_there_is_said_for_any_name(bench: Bench, tmp_path: Path, name: str) -> None:
    for request in (rq.InspectAdapter, rq.LoadAdapter):
        with pytest.raises(NotFound, match="There is no folder or zip called"):
            do(bench, request(source=str(tmp_path / name)))


def test_an_address_of_another_site_is_no_path(bench: Bench) -> None:
    for request in (rq.InspectAdapter, rq.LoadAdapter):
        with pytest.raises(InvalidRequest, match="is an address of another site"):
            do(bench, request(source="https://example.org/adapter"))


@pytest.fixture
def hub(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """The engine's own Hub code, with a stand-in as the Hub."""
    output(bench, tmp_path / "out")
    output(bench, tmp_path / "nested" / "run", top=False)
    shutil.copytree(bench.good, tmp_path / "nested" / "good")
    stand_in = HubStandIn(
        {
            "someone/out": Repository(tmp_path / "out"),
            "someone/nested": Repository(tmp_path / "nested"),
        }
    )

    def download(repo_id: str, **options: Any) -> str:
        return snapshot_download(
            repo_id, endpoint=stand_in.url, cache_dir=str(tmp_path / "cache"), **options
        )

    monkeypatch.setattr(hub_download, "snapshot_download", download)
    monkeypatch.setattr(hub_download, "HfApi", lambda: HfApi(endpoint=stand_in.url))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    yield stand_in
    stand_in.close()


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        ("someone/out", "out"),
        ("someone/out@v1", "out"),
        ("someone/out/checkpoint-5", "out/checkpoint-5"),
        ("someone/out/checkpoint-5@v1", "out/checkpoint-5"),
        ("someone/out@v1/checkpoint-10", "out/checkpoint-10"),
        ("https://huggingface.co/someone/out", "out"),
        ("https://hf.co/someone/out/tree/v1/checkpoint-10", "out/checkpoint-10"),
        ("https://huggingface.co/someone/out/blob/main/checkpoint-5/adapter_config.json",
         "out/checkpoint-5"),
        ("hf://someone/nested/good", "nested/good"),
        ("someone/nested/run", "nested/run/checkpoint-100"),
    ],
)  # fmt: skip
def test_an_adapter_in_a_repository_is_found_by_every_address(
    bench: Bench, tmp_path: Path, hub: HubStandIn, source: str, folder: str
) -> None:
    _, scores = scored(bench, source)

    assert scores == close(tiny.plain_scores(bench.base, tmp_path / folder))
    downloaded = [path for path in hub.requests if "/resolve/" in path]
    assert not any("optimizer" in path for path in downloaded)
    inside = folder.partition("/")[2]
    assert all(
        path.split("/resolve/")[1].partition("/")[2].startswith(inside) for path in downloaded
    )


def test_other_adapters_of_a_repository_are_offered_with_the_revision(
    bench: Bench, hub: HubStandIn
) -> None:
    report = do(bench, rq.InspectAdapter(source="someone/out@v1"))
    assert report.choices == tuple(f"someone/out/checkpoint-{step}@v1" for step in STEPS)


def test_a_missing_folder_revision_or_repository_is_said(bench: Bench, hub: HubStandIn) -> None:
    for source, sentence in (
        ("someone/out/checkpoint-6", "has no folder 'checkpoint-6'"),
        ("someone/out@v9", "has no revision 'v9'"),
        ("someone/none/sub", "does not exist on the Hub, or it is private"),
    ):
        with pytest.raises(NotFound, match=sentence):
            do(bench, rq.LoadAdapter(source=source))
    with pytest.raises(InvalidRequest, match="is a data set on the Hub"):
        do(bench, rq.LoadAdapter(source="https://huggingface.co/datasets/someone/out"))


def test_what_is_in_the_cache_is_used_without_the_hub(bench: Bench, hub: HubStandIn) -> None:
    _, before = scored(bench, "someone/out")
    with hub.unreachable():
        _, after = scored(bench, "someone/out", name="again")
    assert after == before
