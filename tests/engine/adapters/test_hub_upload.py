"""Sending an adapter to the Hub over real HTTP, to a stand-in on this machine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from backend import Service, Settings
from backend import requests as rq
from backend import results as rs
from backend.engine.adapters import hub_upload
from backend.errors import InvalidRequest, NotFound, Unsupported, VerificationFailed
from backend.library import Library
from tests.hub_stand_in import HubStandIn, know_only

pytestmark = pytest.mark.slow
WRITTEN = {"README.md", "adapter_config.json", "adapter_model.safetensors", "workbench.json"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubStandIn]:
    stand_in = HubStandIn({}, uploads=tmp_path_factory.mktemp("uploads"))
    yield stand_in
    stand_in.close()


@pytest.fixture(scope="module")
def service(hub: HubStandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with an adapter on data of its own; its processes know no other Hub."""
    folder = tmp_path_factory.mktemp("private-folder")
    rows = folder / "my rows.jsonl"
    rows.write_text('{"prompt": "Where?", "completion": "Here."}\n' * 9, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        know_only(hub, tmp_path_factory.mktemp("hub-home"), patch)
        patch.setenv("HF_TOKEN", "hf_of_nobody")
        patch.setenv("HF_HUB_DISABLE_XET", "1")  # the stand-in speaks the older protocol alone
        with Service(Settings(workspace=tmp_path_factory.mktemp("workspace"))) as service:
            service.start(rq.LoadModel(source="starter")).result(timeout=120)
            train = rq.Train(name="mine", data=str(rows), max_steps=2, eval_share=0.0)
            service.start(train).result(timeout=300)
            yield service


def push(service: Service, repo_id: str, **fields: bool) -> rs.PushedAdapter:
    request = rq.PushAdapter(name="mine", repo_id=repo_id, **fields)
    pushed: rs.PushedAdapter = service.start(request).result(timeout=120)
    return pushed


def test_an_adapter_arrives_and_names_nothing_of_this_machine(
    service: Service, hub: HubStandIn
) -> None:
    pushed = push(service, "someone/mine")

    repository = hub.repositories["someone/mine"]
    assert repository.private
    assert {file.name for file in repository.files()} == WRITTEN == set(pushed.files)
    assert (pushed.url, pushed.commit) == (f"{hub.url}/someone/mine", repository.commit)
    assert pushed.bytes == sum(file.stat().st_size for file in repository.files())
    texts = "".join(
        (repository.folder / name).read_text() for name in WRITTEN if "safetensors" not in name
    )
    assert "private-folder" not in texts
    assert str(Path.home()) not in texts
    assert json.loads((repository.folder / "workbench.json").read_text())["data"] == "my rows.jsonl"


def test_what_was_sent_is_added_again_from_the_hub(service: Service, hub: HubStandIn) -> None:
    push(service, "someone/again", private=False)
    assert not hub.repositories["someone/again"].private

    loaded = service.start(rq.LoadAdapter(source="someone/again", name="back")).result(timeout=120)

    scores = rq.Score(texts=["Where? Here."], variants=[[("mine", 1.0)], [("back", 1.0)]])
    own, back = service.start(scores).result(timeout=60).scores
    assert loaded.adapter.base_name == "starter"
    assert own == back


def test_what_is_there_is_written_over_only_when_somebody_says_so(
    service: Service, hub: HubStandIn
) -> None:
    push(service, "someone/taken")
    (hub.repositories["someone/taken"].folder / "README.md").write_text("old")

    with pytest.raises(InvalidRequest) as caught:
        push(service, "someone/taken")
    replaced = push(service, "someone/taken", replace=True)

    assert str(caught.value) == (
        "someone/taken already exists on the Hub. Choose another name, or turn on Replace."
    )
    assert "# mine" in (hub.repositories["someone/taken"].folder / "README.md").read_text()
    assert set(replaced.files) == WRITTEN


def test_what_arrives_other_than_it_was_sent_leaves_nothing(
    service: Service, hub: HubStandIn
) -> None:
    hub.loses = {"adapter_model.safetensors"}
    try:
        with pytest.raises(VerificationFailed, match="on the Hub differs from the uploaded file"):
            push(service, "someone/lossy")
    finally:
        hub.loses = set()

    assert "someone/lossy" not in hub.repositories


def test_why_the_hub_does_not_take_it_is_said(service: Service, hub: HubStandIn) -> None:
    with pytest.raises(InvalidRequest, match="'a/b/c' cannot be a name on the Hub"):
        push(service, "a/b/c")
    with pytest.raises(InvalidRequest, match="'someone/a--b' cannot be a name on the Hub"):
        push(service, "someone/a--b")
    hub.refuses_writing = True
    try:
        with pytest.raises(Unsupported, match="You have no permission to write to someone/else"):
            push(service, "someone/else")
    finally:
        hub.refuses_writing = False
    with hub.unreachable(), pytest.raises(NotFound, match=r"^The Hub cannot be reached\."):
        push(service, "someone/far")


def test_somebody_has_to_be_signed_in(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")

    with pytest.raises(Unsupported, match=r"There is no Hub login .* Run 'hf auth login'"):
        push(service, "someone/anonymous")


def test_a_file_that_still_names_a_folder_is_not_sent(service: Service, tmp_path: Path) -> None:
    library = Library(service.settings.adapters_dir)
    info = library.get("mine")
    card = library.folder(info.id) / "README.md"
    text = card.read_text(encoding="utf-8")
    card.write_text(f'{text}see "{Path.home()}/notes.txt"', encoding="utf-8")
    try:
        with pytest.raises(VerificationFailed, match=r"README\.md contains names"):
            hub_upload.public_copy(library, info, tmp_path / "copy")
    finally:
        card.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("said", "public"),
    [
        ("From /home/me/adapters/pirate", "From pirate"),
        ("From ~/pirate.zip, made elsewhere", "From pirate.zip, made elsewhere"),
        ("0.7 pirate + 0.3 polite (cat)", "0.7 pirate + 0.3 polite (cat)"),
        ("From someone/pirate", "From someone/pirate"),
    ],
)
def test_paths_become_names(said: str, public: str) -> None:
    assert hub_upload.without_paths(said) == public
