"""What the page may touch; Python and the command line act with the caller's own rights."""

from pathlib import Path

import pytest

from backend import Settings
from backend import requests as rq
from backend.access import check_caller, looks_like_path, require_allowed
from backend.errors import InvalidRequest, Unsupported


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    (folder / "models").mkdir(parents=True)
    (folder / ".ssh").mkdir()
    (tmp_path / "elsewhere").mkdir()
    return folder


@pytest.fixture
def settings(tmp_path: Path, home: Path) -> Settings:
    return Settings(workspace=home / ".cache" / "workbench", allowed_roots=(home,))


def requests_for(path: str) -> list[rq.Request]:
    train = rq.Train(name="x", data=path)
    return [
        rq.LoadModel(source=path),
        train,
        rq.Preflight(train=train),
        rq.PreviewData(data=path),
        rq.PrepareData(data=path),
        rq.PrepareData(data="starter:pirate", held_out=path),
        rq.Train(name="x", held_out=path),
        rq.Preflight(train=rq.Train(name="x", held_out=path)),
        rq.QuantizationTable(source=path),
        rq.InspectAdapter(source=path),
        rq.LoadAdapter(source=path),
        rq.SaveAdapter(name="x", destination=path),
        rq.Merge(variant=[("x", 1.0)], destination=path),
        rq.ExportRun(run_id="x", destination=path),
    ]


def test_every_request_that_names_a_place_is_tried_here() -> None:
    places = {"source", "data", "held_out", "destination", "train"}
    naming = {kind for kind in rq.BY_NAME.values() if places & kind.model_fields.keys()}

    assert {type(request) for request in requests_for("x")} == naming


@pytest.mark.parametrize("place", ["models/base", ".cache/workbench/uploads/data.jsonl", "."])
def test_the_page_may_use_the_workspace_and_allowed_folders(
    home: Path, settings: Settings, place: str
) -> None:
    for request in requests_for(str(home / place)):
        check_caller(request, settings)


@pytest.mark.parametrize(
    "place",
    [
        "../elsewhere/data.jsonl",
        "models/../../elsewhere",
        ".ssh/id_rsa",
        "models/.hidden/data.jsonl",
        ".cache/workbench/../../.ssh/id_rsa",
        ".cache/workbench-2/data.jsonl",
    ],
)
def test_the_page_may_not_use_anything_else(home: Path, settings: Settings, place: str) -> None:
    for request in requests_for(f"{home}/{place}"):
        with pytest.raises(InvalidRequest) as caught:
            check_caller(request, settings)
        assert "The page may not use" in caught.value.what
        assert caught.value.cure == (
            "Start the app with --allow-folder and the folder's name to permit it."
        )


@pytest.mark.parametrize("source", ["/etc/passwd", "~root/x", "../../etc/passwd", "./secret"])
def test_paths_in_any_spelling_are_paths(settings: Settings, source: str) -> None:
    with pytest.raises(InvalidRequest):
        check_caller(rq.LoadModel(source=source), settings)


def test_a_link_leads_where_it_leads(home: Path, settings: Settings, tmp_path: Path) -> None:
    (home / "models" / "out").symlink_to(tmp_path / "elsewhere")
    (home / "models" / "in").symlink_to(home / "models")
    settings.workspace.mkdir(parents=True)
    (settings.workspace / "out").symlink_to(tmp_path / "elsewhere")

    for outside in (home / "models" / "out" / "x", settings.workspace / "out" / "x"):
        with pytest.raises(InvalidRequest):
            require_allowed(outside, settings)
    require_allowed(home / "models" / "in" / "x", settings)


def test_a_relative_name_of_a_file_that_is_there_is_a_path(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "data.jsonl").write_text("{}", encoding="utf-8")

    assert looks_like_path("data.jsonl")
    with pytest.raises(InvalidRequest):
        check_caller(rq.PreviewData(data="data.jsonl"), settings)


@pytest.mark.parametrize("source", ["someone/model", "gpt2", "HuggingFaceTB/SmolLM2-135M"])
def test_hub_ids_are_no_paths(settings: Settings, source: str) -> None:
    assert not looks_like_path(source)
    check_caller(rq.LoadModel(source=source), settings)


@pytest.mark.parametrize("source", ["starter", "starter:pirate", "starter:../../etc/passwd"])
def test_the_starter_kit_is_always_allowed(settings: Settings, source: str) -> None:
    check_caller(rq.PreviewData(data=source), settings)


def test_without_allowed_folders_only_the_workspace_is_left(tmp_path: Path) -> None:
    settings = Settings(workspace=tmp_path / "workspace")

    require_allowed(tmp_path / "workspace" / "uploads" / "x", settings)
    with pytest.raises(InvalidRequest):
        require_allowed(tmp_path / "x", settings)


def test_a_demo_works_with_the_starter_kit_only(home: Path, settings: Settings) -> None:
    demo = settings.model_copy(update={"demo": True})

    check_caller(rq.LoadModel(source="starter"), demo)
    check_caller(rq.Train(name="x", data="starter:pirate"), demo)
    for source in ("someone/model", str(home / "models"), str(demo.workspace / "uploads" / "x")):
        for request in requests_for(source)[:-3]:
            with pytest.raises(Unsupported, match="bundled models and data only"):
                check_caller(request, demo)
    for request in requests_for(str(demo.workspace / "copy"))[-3:]:
        with pytest.raises(Unsupported, match="does not write to folders"):
            check_caller(request, demo)


def test_visitors_of_a_demo_send_nothing_to_the_hub(settings: Settings) -> None:
    demo = settings.model_copy(update={"demo": True})
    request = rq.PushAdapter(name="x", repo_id="someone/x")

    with pytest.raises(Unsupported, match="does not send anything to the Hub"):
        check_caller(request, demo)
    check_caller(request, demo, "owner")
    check_caller(request, settings)


def test_the_owner_of_a_demo_may_do_what_a_page_may(home: Path, settings: Settings) -> None:
    demo = settings.model_copy(update={"demo": True, "allowed_roots": ()})

    for request in requests_for(str(demo.workspace / "uploads" / "x")):
        check_caller(request, demo, "owner")
    check_caller(rq.LoadModel(source="someone/model"), demo, "owner")
    for request in requests_for(str(home / "models")):
        with pytest.raises(InvalidRequest, match="The page may not use"):
            check_caller(request, demo, "owner")


def test_python_acts_with_its_own_rights(settings: Settings) -> None:
    demo = settings.model_copy(update={"demo": True})

    for request in requests_for("/etc/passwd"):
        check_caller(request, demo, "local")


@pytest.mark.parametrize("source", ["library:pirate", "library:../../etc"])
def test_a_name_in_the_library_is_no_path(settings: Settings, source: str) -> None:
    for demo in (False, True):
        check_caller(rq.LoadAdapter(source=source), settings.model_copy(update={"demo": demo}))
