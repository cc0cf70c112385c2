"""Loading by Hub id over real HTTP, from a stand-in on this machine."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backend import Service, Settings
from backend import requests as rq
from backend.errors import (
    InvalidRequest,
    ModelError,
    NotFound,
    Stopped,
    Unsupported,
    WorkbenchError,
)
from backend.files.safetensors_header import read_header
from backend.settings import STARTER
from tests.engine.stored_bases import configure
from tests.hub_stand_in import HubStandIn, Repository, know_only

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubStandIn]:
    root = tmp_path_factory.mktemp("repositories")

    def copy(name: str) -> Path:
        return Path(shutil.copytree(STARTER / "model", root / name))

    starter = copy("starter")
    (starter / "pytorch_model.bin").write_bytes(b"pickled")
    (starter / "training_args.bin").write_bytes(b"pickled")
    (starter / "handler.py").write_text("raise SystemExit", encoding="utf-8")
    (starter / "original").mkdir()
    for name in ("original/consolidated.safetensors", "consolidated.safetensors",
                 "model.fp16.safetensors", "model-00001-of-00001.safetensors", "model.gguf",
                 "flax_model.msgpack", "tf_model.h5", "pytorch_model.bin.index.json",
                 "original/params.json"):  # fmt: skip
        (starter / name).write_bytes(b"weights that nobody reads")
    pickled = copy("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    sharded = copy("sharded")
    (sharded / "model.safetensors").rename(sharded / "model-00001-of-00001.safetensors")
    shutil.copy(
        STARTER / "model" / "model.safetensors", sharded / "model-00002-of-00002.safetensors"
    )
    gptq = configure(copy("gptq"), quantization_config={"quant_method": "gptq"})
    card = "---\nbase_model: someone/starter\n---\n"
    (gptq / "README.md").write_text(card, encoding="utf-8")
    tensors = read_header(sharded / "model-00001-of-00001.safetensors")
    places = {each.key: "model-00001-of-00001.safetensors" for each in tensors}
    index = {"metadata": {}, "weight_map": places}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    stand_in = HubStandIn(
        {
            "someone/sharded": Repository(sharded),
            "someone/large": Repository(copy("large")),
            "someone/starter": Repository(starter),
            "someone/other": Repository(copy("other")),
            "someone/slow": Repository(copy("slow")),
            "someone/licensed": Repository(copy("licensed"), gated=True),
            "someone/pickled": Repository(pickled),
            "someone/gptq": Repository(gptq),
        }
    )
    yield stand_in
    stand_in.close()


@pytest.fixture(scope="module")
def service(hub: HubStandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose worker knows no other Hub than the stand-in."""
    home = tmp_path_factory.mktemp("hub-home")
    with pytest.MonkeyPatch.context() as patch:
        know_only(hub, home, patch)
        with Service(Settings(workspace=tmp_path_factory.mktemp("workspace"))) as service:
            service.start(rq.LoadModel(source="starter")).result(timeout=120)
            yield service


def load(service: Service, source: str, **fields: Any) -> Any:
    return service.start(rq.LoadModel(source=source, **fields)).result(timeout=120)


def wait_until(happened: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline, "It did not happen in time."
        time.sleep(0.02)


def test_a_model_is_loaded_by_its_id_and_again_from_the_cache(
    service: Service, hub: HubStandIn
) -> None:
    bundled = load(service, "starter")

    facts = load(service, "someone/starter")
    downloads = [path for path in hub.requests if path.startswith("/someone/starter/resolve/")]
    with hub.unreachable():
        again = load(service, "someone/starter")

    assert (facts.name, facts.source) == ("someone/starter", "someone/starter")
    assert facts.fingerprint == bundled.fingerprint
    used = {file.name for file in (STARTER / "model").iterdir()}
    assert {path.split("/", 5)[-1] for path in downloads} == used
    assert {file.name for file in Path(facts.path).iterdir()} == used
    assert (again.fingerprint, again.path) == (facts.fingerprint, facts.path)


def test_a_copy_that_is_not_read_is_refused_before_its_weights_are_fetched(
    service: Service, hub: HubStandIn
) -> None:
    with pytest.raises(Unsupported, match="Load someone/starter, and choose the quantisation"):
        load(service, "someone/gptq")

    assert any(path.startswith("/someone/gptq/resolve/") for path in hub.requests)
    assert not any(
        path.startswith("/someone/gptq/") and path.endswith("safetensors") for path in hub.requests
    )


def test_progress_is_shown_in_bytes(service: Service, hub: HubStandIn) -> None:
    hub.held, hub.release = {"generation_config.json"}, hub.release.__class__()
    job = service.start(rq.LoadModel(source="someone/other"))

    def downloading() -> bool:
        info = service.snapshot().job
        return info is not None and info.text.startswith("Downloading someone/other: ")

    wait_until(downloading)
    shown = service.snapshot().job
    hub.release.set()
    facts = job.result(timeout=120)

    assert shown is not None
    assert re.search(r": \d+ (bytes|KB|MB) of \d+ (bytes|KB|MB)$", shown.text)
    assert shown.fraction is not None
    assert 0 < shown.fraction <= 1
    assert facts.name == "someone/other"


def test_a_download_can_be_stopped_and_the_base_stays(service: Service, hub: HubStandIn) -> None:
    before = load(service, "starter")
    hub.held, hub.release = {"model.safetensors"}, hub.release.__class__()
    job = service.start(rq.LoadModel(source="someone/slow"))
    wait_until(lambda: any("someone/slow/resolve" in path for path in hub.requests))

    service.stop()
    hub.release.set()
    with pytest.raises(Stopped, match="the next attempt continues there"):
        job.result(timeout=120)
    hub.held = set()

    assert service.snapshot().base == before


def test_only_the_weight_files_in_the_index_are_downloaded(
    service: Service, hub: HubStandIn
) -> None:
    facts = load(service, "someone/sharded")
    downloads = [path for path in hub.requests if path.startswith("/someone/sharded/resolve/")]

    weights = {path.split("/", 5)[-1] for path in downloads if "safetensors" in path}
    assert weights == {"model-00001-of-00001.safetensors", "model.safetensors.index.json"}
    assert facts.name == "someone/sharded"


def test_a_download_that_was_stopped_is_continued(service: Service, hub: HubStandIn) -> None:
    hub.stalls_after, hub.release = {"model.safetensors": 4_000_000}, hub.release.__class__()
    hub.sent.clear()
    job = service.start(rq.LoadModel(source="someone/large"))
    wait_until(lambda: any(name == "model.safetensors" for name, *_ in hub.sent))
    time.sleep(1)  # until the first part has arrived
    service.stop()
    time.sleep(1)  # until the worker has the command
    hub.release.set()
    with pytest.raises(Stopped):
        job.result(timeout=120)
    hub.stalls_after = {}
    hub.sent.clear()

    facts = load(service, "someone/large")

    ((first, sent),) = [each[1:] for each in hub.sent if each[0] == "model.safetensors"]
    assert first >= 3_000_000
    assert first + sent == (STARTER / "model" / "model.safetensors").stat().st_size
    assert facts.name == "someone/large"


def test_a_revision_is_found(service: Service) -> None:
    assert load(service, "someone/starter", revision="v1").name == "someone/starter"


@pytest.mark.parametrize(
    ("source", "revision", "kind", "sentence"),
    [
        (
            "someone/nothing",
            None,
            NotFound,
            "'someone/nothing' does not exist on the Hub, or it is private. "
            "Check the spelling. If it is yours, run 'hf auth login' once or set HF_TOKEN.",
        ),
        (
            "someone/licensed",
            None,
            NotFound,
            "'someone/licensed' is a gated repository. "
            "Accept its conditions on HUB/someone/licensed, then run 'hf auth login' once or set "
            "HF_TOKEN, and try again.",
        ),
        (
            "someone/starter",
            "v9",
            NotFound,
            "'someone/starter' has no revision 'v9'.",
        ),
        (
            "someone--else/starter",
            None,
            InvalidRequest,
            "'someone--else/starter' is neither a folder on this machine nor a Hub id. "
            "Ids look like HuggingFaceTB/SmolLM2-135M.",
        ),
        (
            "someone/pickled",
            None,
            ModelError,
            "someone/pickled has a config.json but no weights (no model.safetensors). "
            "Only safetensors files are read: choose another base, or convert it first.",
        ),
    ],
    ids=["unknown", "gated", "revision", "no id", "pickled"],
)
def test_what_the_hub_does_not_give_is_said_in_words_and_the_base_stays(
    service: Service,
    hub: HubStandIn,
    source: str,
    revision: str | None,
    kind: type[WorkbenchError],
    sentence: str,
) -> None:
    before = load(service, "starter")

    with pytest.raises(kind) as caught:
        load(service, source, revision=revision)

    assert str(caught.value).replace(hub.url, "HUB") == sentence
    assert service.snapshot().base == before


def test_without_the_internet_the_cure_is_what_is_there(service: Service, hub: HubStandIn) -> None:
    before = load(service, "starter")

    with hub.unreachable(), pytest.raises(NotFound) as caught:
        load(service, "someone/unseen")

    assert str(caught.value) == (
        "'someone/unseen' is not on this machine, and the Hub cannot be reached. "
        "Check the internet connection, or choose the starter model or a folder."
    )
    assert service.snapshot().base == before


def test_a_hub_that_is_down_is_said_in_words(service: Service, hub: HubStandIn) -> None:
    hub.answers_with = 500
    try:
        with pytest.raises(NotFound, match="'someone/unseen' is not on this machine, and the Hub"):
            load(service, "someone/unseen")
    finally:
        hub.answers_with = None
