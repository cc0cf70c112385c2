"""What the page may touch; Python and the command line act with the caller's own rights."""

from pathlib import Path

import pytest

from backend import MODEL_NAMES, Settings
from backend import requests as rq
from backend.errors import InvalidRequest, Unsupported
from backend.permissions import (
    check_caller,
    looks_like_path,
    on_hub,
    require_allowed,
    resolved,
)


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
        rq.DescribeHubData(data=path),
        rq.DownloadHubData(data=path),
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
        writes = isinstance(request, rq.SaveAdapter | rq.Merge | rq.ExportRun)
        assert caught.value.cure == (
            "Start the app with --allow-folder and the folder's name to permit it"
            f"{'' if writes else ', or upload the file'}."
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


@pytest.mark.parametrize(
    "source",
    [
        "data.jsonl",
        "folder/data.CSV",
        "adapter.zip",
        "./text",
        "../text",
        "C:\\data",
        "https://example.org/data.jsonl",
        "hf://datasets/someone/data",
        "file:///etc/passwd",
        "zip://data.csv::https://example.org/data.zip",
        "s3://bucket/data.parquet",
        "*.jsonl",
        "{starter,backend}",
        " text",
        "te\0xt",
        "~nobody-of-this-name/data",
    ],
)
def test_what_begins_at_a_working_folder_or_is_an_address_is_refused_on_the_page(
    settings: Settings, source: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    for request in requests_for(source)[:-3]:
        with pytest.raises(InvalidRequest):
            check_caller(request, settings)


@pytest.mark.parametrize(
    "source",
    [
        "owner/repo",
        "owner/repo/checkpoint-20",
        "owner/repo@v1",
        "owner/repo/sub/folder@v1",
        "https://huggingface.co/owner/repo/tree/main/checkpoint-20",
        "hf://owner/repo@v1/sub",
    ],
)
def test_an_adapter_has_addresses_on_the_hub_that_a_model_does_not_have(
    settings: Settings, source: str
) -> None:
    for kind in (rq.InspectAdapter, rq.LoadAdapter):
        request = kind(source=source)
        check_caller(request, settings)
        assert resolved(request) == request
        with pytest.raises(Unsupported, match="bundled models and data only"):
            check_caller(request, settings.model_copy(update={"demo": True}))
    if source not in ("owner/repo", "owner/repo@v1"):  # of the last one, the Hub says it
        with pytest.raises(InvalidRequest):
            check_caller(rq.LoadModel(source=source), settings)


@pytest.mark.parametrize(
    "source",
    [
        "some.zip/checkpoint-20",
        "owner/../repo/sub",
        "owner/repo/../../../etc",
        "owner/repo/sub.zip",
        "owner/repo@",
        "owner/repo@../../x",
        "owner//repo",
        "owner/repo/*",
        "owner/repo@v1@v2",
        "a/" * 40 + "b",
        "https://huggingface.co.example.org/owner/repo",
        "https://user@example.org/huggingface.co/owner/repo",
        "https://huggingface.co/datasets/owner/repo",
        "https://huggingface.co/owner/repo/tree/main/..%2F..%2Fx",
        "https://huggingface.co/",
        "hf://datasets/owner/repo",
        "hf://owner/repo/[a-z]",
    ],
)
def test_what_is_no_address_of_an_adapter_is_refused_on_the_page(
    settings: Settings, source: str
) -> None:
    for kind in (rq.InspectAdapter, rq.LoadAdapter):
        with pytest.raises(InvalidRequest):
            check_caller(kind(source=source), settings)


def test_an_adapter_that_exists_in_the_working_folder_is_a_path_for_the_command_line(
    home: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    (home / "output" / "run" / "checkpoint-20").mkdir(parents=True)
    request = rq.LoadAdapter(source="output/run/checkpoint-20")

    assert resolved(request).source == str(home / "output" / "run" / "checkpoint-20")
    assert resolved(request, "page") == request


def test_what_lies_in_a_working_folder_changes_nothing_on_the_page(
    home: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page would otherwise read the folder that its process happens to be started in."""
    monkeypatch.chdir(home)
    (home / "someone" / "model").mkdir(parents=True)
    (home / "text").mkdir()

    for source in ("text", "someone/model", "models"):
        assert not looks_like_path(source)
        for request in requests_for(source)[:-3]:
            check_caller(request, settings)
            assert resolved(request, "page") == request


def test_python_and_the_command_line_may_name_what_lies_in_their_working_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    (home / "text").mkdir()

    assert resolved(rq.LoadModel(source="models")).source == str(home / "models")
    assert resolved(rq.PreviewData(data="text")).data == str(home / "text")
    assert resolved(rq.PreviewData(data="data.jsonl")).data == str(home / "data.jsonl")
    inside = resolved(rq.Preflight(train=rq.Train(name="x", data="text"))).train
    assert inside.data == str(home / "text")
    assert resolved(rq.LoadModel(source="someone/model")).source == "someone/model"


def test_a_loop_of_links_is_said(home: Path, settings: Settings) -> None:
    (home / "loop").symlink_to(home / "loop")

    with pytest.raises(InvalidRequest, match="its links form a loop"):
        check_caller(rq.LoadModel(source=str(home / "loop" / "x")), settings)


@pytest.mark.parametrize("source", ["someone/model", "gpt2", "HuggingFaceTB/SmolLM2-135M"])
def test_hub_ids_are_no_paths(settings: Settings, source: str) -> None:
    assert not looks_like_path(source)
    check_caller(rq.LoadModel(source=source), settings)


@pytest.mark.parametrize("source", ["starter", "starter:pirate", "starter:../../etc/passwd"])
def test_the_starter_kit_is_always_allowed(settings: Settings, source: str) -> None:
    check_caller(rq.PreviewData(data=source), settings)


@pytest.mark.parametrize("source", MODEL_NAMES)
def test_a_base_by_name_is_neither_a_path_nor_a_hub_id(
    home: Path, settings: Settings, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    (home / source).mkdir()
    request = rq.LoadModel(source=source)

    assert not on_hub(source)
    assert resolved(request) == request
    check_caller(request, settings)
    check_caller(request, settings.model_copy(update={"demo": True}))


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


@pytest.mark.parametrize("source", ["file.gguf", "sub/file.gguf", "../a/b/file.gguf", "./f.gguf"])
def test_a_relative_gguf_file_is_a_path_that_the_page_may_not_use(
    settings: Settings, source: str
) -> None:
    assert looks_like_path(source)
    with pytest.raises(InvalidRequest, match="absolute path"):
        check_caller(rq.LoadModel(source=source), settings)


def test_gguf_files_lie_where_the_page_may_look(home: Path, settings: Settings) -> None:
    check_caller(rq.LoadModel(source=str(home / "models" / "x.gguf")), settings)
    with pytest.raises(InvalidRequest, match="may not use"):
        check_caller(rq.LoadModel(source=str(home.parent / "elsewhere" / "x.gguf")), settings)


@pytest.mark.parametrize("source", ["owner/repo:file.gguf", "owner/repo/file.gguf"])
def test_a_gguf_file_on_the_hub_is_no_path(
    settings: Settings, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert on_hub(source)
    check_caller(rq.LoadModel(source=source), settings)
    monkeypatch.chdir(tmp_path)
    assert resolved(rq.LoadModel(source=source)).source == source
    (tmp_path / "owner" / "repo").mkdir(parents=True)
    (tmp_path / "owner" / "repo" / "file.gguf").touch()
    here = resolved(rq.LoadModel(source="owner/repo/file.gguf")).source
    assert here == str(tmp_path / "owner" / "repo" / "file.gguf")
