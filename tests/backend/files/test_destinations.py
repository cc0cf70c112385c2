"""Where merges, copies and exports may be written: never over what the app itself needs."""

from pathlib import Path

import pytest

from backend import Service, Settings
from backend import requests as rq
from backend.errors import InvalidRequest
from backend.files.destinations import require_destination
from backend.settings import PROJECT
from tests.backend.conftest import ScriptedRuntime

WITHIN = "is|is inside|contains"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(workspace=tmp_path / "home" / "workspace")
    for folder in (settings.adapters_dir / ".trash", settings.runs_dir, settings.merged_dir):
        folder.mkdir(parents=True)
    return settings


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "base"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    "place",
    [
        "", ".", "adapters", "adapters/new", "adapters/.trash/new", "runs/new", "tokens",
        "tokens/new", "uploads/new", "queue.json", "new", "merged", "merged/../runs/new",
        "copies/../../workspace/adapters/new", "..", "../..", ".hidden/new",
    ],
)  # fmt: skip
def test_the_workspace_is_not_written_over(settings: Settings, base: Path, place: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"({WITHIN}) ") as caught:
        require_destination(settings.workspace / place, settings, base)

    assert str(settings.merged_dir) in caught.value.cure


@pytest.mark.parametrize("place", ["merged/new", "exports/new", "copies/deep/new", "../new"])
def test_folders_that_are_meant_for_it_are_open(settings: Settings, base: Path, place: str) -> None:
    require_destination(settings.workspace / place, settings, base)


@pytest.mark.parametrize("place", [".", "backend/engine/new", "ui", "new", ".."])
def test_the_apps_own_folder_is_not_written_over(
    settings: Settings, base: Path, place: str
) -> None:
    with pytest.raises(
        InvalidRequest, match=rf"({WITHIN}) the (app's own folder|workspace|base's own)"
    ):
        require_destination(PROJECT / place, settings, base)


def test_a_workspace_in_the_apps_own_folder_keeps_its_open_folders(base: Path) -> None:
    settings = Settings(workspace=PROJECT / "a-workspace-of-tests")

    require_destination(settings.merged_dir / "new", settings, base)
    with pytest.raises(InvalidRequest):
        require_destination(settings.workspace / "new", settings, base)


def test_the_base_is_not_written_over(settings: Settings, base: Path) -> None:
    for place in (base, base / "merged", base.parent):
        with pytest.raises(InvalidRequest, match=rf"({WITHIN}) the base's own folder"):
            require_destination(place, settings, base)


def test_links_do_not_lead_around_it(settings: Settings, base: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(settings.workspace)
    (settings.merged_dir / "out").symlink_to(settings.runs_dir)

    for place in (
        tmp_path / "alias" / "adapters" / "new",
        settings.merged_dir / "out" / "new",
        tmp_path / "alias",
    ):
        with pytest.raises(InvalidRequest):
            require_destination(place, settings, base)
    require_destination(tmp_path / "alias" / "merged" / "new", settings, base)


def test_a_folder_of_the_workspace_on_another_disk_is_protected_and_open_there(
    settings: Settings, base: Path, tmp_path: Path
) -> None:
    for name in ("runs", "merged"):
        (settings.workspace / name).rmdir()
        (tmp_path / "disk" / name).mkdir(parents=True)
        (settings.workspace / name).symlink_to(tmp_path / "disk" / name)

    with pytest.raises(InvalidRequest, match="the runs"):
        require_destination(tmp_path / "disk" / "runs" / "new", settings, base)
    require_destination(settings.merged_dir / "new", settings, base)
    require_destination(tmp_path / "disk" / "merged" / "new", settings, base)


def test_a_link_to_nothing_is_named(settings: Settings, base: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")

    with pytest.raises(InvalidRequest, match=r"link is a link to .*gone, which does not exist"):
        require_destination(tmp_path / "link", settings, base)


@pytest.mark.parametrize("kind", ["merge", "save-adapter", "export-run"])
def test_every_request_with_a_destination_is_checked(
    service: Service, engine: ScriptedRuntime, kind: str
) -> None:
    destination = str(service.settings.runs_dir / "new")
    request = {
        "merge": rq.Merge(variant=[("pirate", 1.0)], destination=destination),
        "save-adapter": rq.SaveAdapter(name="pirate", destination=destination),
        "export-run": rq.ExportRun(run_id="x", destination=destination),
    }[kind]
    before = list(engine.sent)

    with pytest.raises(InvalidRequest, match=rf"({WITHIN}) "):
        service.start(request)

    assert engine.sent == before


def test_no_request_with_a_destination_is_forgotten() -> None:
    with_one = {name for name, kind in rq.BY_NAME.items() if "destination" in kind.model_fields}

    assert with_one == {"merge", "save-adapter", "export-run"}


@pytest.mark.parametrize("place", ["merged/base/new", "merged/base"])
def test_a_base_inside_an_open_folder_is_not_written_over(settings: Settings, place: str) -> None:
    base = settings.merged_dir / "base"
    base.mkdir(parents=True)

    with pytest.raises(InvalidRequest, match="the base's own folder"):
        require_destination(settings.workspace / place, settings, base)


def test_a_name_that_no_file_system_takes_is_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="has 300 bytes, but at most 255 are possible"):
        require_destination(tmp_path / ("x" * 300) / "deep", settings, None)
    with pytest.raises(InvalidRequest, match="is empty"):
        require_destination(tmp_path / " ", settings, None)
