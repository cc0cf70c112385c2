"""A service whose engine is a script: each test says what the engine answers, and when."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from backend import Service, Settings
from backend import requests as rq
from backend import results as rs
from backend.errors import WorkbenchError

FACTS = rs.ModelFacts(
    name="starter",
    source="starter",
    path="models/starter",
    architecture="llama",
    parameters=1000,
    layers=2,
    hidden_size=8,
    vocabulary=100,
    context_length=64,
    precision="fp32",
    precision_reason="exact",
    device="cpu",
    tied_embeddings=False,
    chat_template=True,
    memory_predicted_bytes=4000,
    memory_measured_bytes=4000,
    fingerprint="abc123",
    seconds=0.1,
)


LOOK = rs.DataPreview(rows=91, problems=[], stats=None, examples=[], shape="messages")
READY = rs.PreflightReport(
    ready=True,
    problems=[],
    notes=[],
    matched_modules=["q_proj"],
    trainable_parameters=1,
    total_parameters=1000,
    stats=None,
    steps=1,
    memory_bytes=1,
    memory_available_bytes=2,
    seconds=None,
    seconds_from="",
    mark=rs.DataMark(rows=91, content="as it was", examples="as it was"),
)


class ScriptedRuntime:
    """An engine that does nothing by itself; keeps what it was told.

    The operations in `checks` are answered at once, as the queue needs it.
    """

    ANSWERED: ClassVar[dict[str, rs.Result | WorkbenchError]] = {}

    def __init__(
        self, on_message: Callable[[dict[str, Any]], None], on_exit: Callable[[str], None]
    ) -> None:
        self.on_message = on_message
        self.on_exit = on_exit
        self.sent: list[dict[str, Any]] = []
        self.resident = 1_000_000
        self.killed = False
        self.closed = False
        self.options: dict[str, Any] = {}
        self.checks = dict(self.ANSWERED)

    def send(self, message: dict[str, Any]) -> None:
        if message.get("op") in self.checks:  # the queue waits for them
            threading.Thread(target=self._check, args=(message,), daemon=True).start()
        else:
            self.sent.append(message)

    def _check(self, message: dict[str, Any]) -> None:
        result = self.checks[message["op"]]
        if isinstance(result, WorkbenchError):
            self.on_message({"type": "error", "id": message["id"], "error": result.to_dict()})
            return
        content = result.model_dump(mode="json")
        self.on_message({"type": "result", "id": message["id"], "result": content})

    def close(self) -> None:
        self.closed = True

    def kill(self) -> bool:
        self.killed = True
        return True

    def memory_bytes(self) -> int:
        return self.resident

    @property
    def operations(self) -> list[str]:
        return [message["op"] for message in self.sent if "op" in message]

    @property
    def words(self) -> list[str]:
        return [message["control"] for message in self.sent if "control" in message]

    def session(self, base: rs.ModelFacts | None, active: list[tuple[str, float]]) -> None:
        facts = base.model_dump(mode="json") if base else None
        self.on_message({"type": "session", "base": facts, "active": active})

    def tell(self, type: str, **content: Any) -> None:
        """Say something about the operation that was sent last."""
        last = [message for message in self.sent if "op" in message][-1]
        self.on_message({"type": type, "id": last["id"], **content})

    def answer(self, result: rs.Result) -> None:
        self.tell("result", result=result.model_dump(mode="json"))


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[ScriptedRuntime]:
    """Every engine that a service starts, in order."""
    started: list[ScriptedRuntime] = []

    def start(settings: Settings, on_message: Any, on_exit: Any, **kwargs: Any) -> ScriptedRuntime:
        started.append(ScriptedRuntime(on_message, on_exit))
        return started[-1]

    monkeypatch.setattr("backend.service.engine_client.start_runtime", start)
    monkeypatch.setattr("backend.service.engine_client.CLOSE_GRACE_S", 0.0)
    monkeypatch.setattr("backend.service.engine_client.ABORT_GRACE_S", 0.01)
    return started


@pytest.fixture
def answered_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines that answer the checks of the queue at once."""
    answers = {"preview-data": LOOK, "preflight": READY}
    monkeypatch.setattr(ScriptedRuntime, "ANSWERED", answers)


@pytest.fixture
def scripted(engines: list[ScriptedRuntime], tmp_path: Path) -> Iterator[Callable[[], Service]]:
    """Make services over the same workspace with scripted engines."""
    made: list[Service] = []

    def make() -> Service:
        made.append(Service(Settings(workspace=tmp_path, runtime="inline")))
        return made[-1]

    yield make
    for service in made:
        service.close()


@pytest.fixture
def service(scripted: Callable[[], Service], engines: list[ScriptedRuntime]) -> Service:
    """A service with a base loaded."""
    service = scripted()
    job = service.start(rq.LoadModel(source="starter"))
    engines[0].session(FACTS, [])
    engines[0].answer(FACTS)
    job.result(timeout=0)
    return service


@pytest.fixture
def engine(service: Service, engines: list[ScriptedRuntime]) -> ScriptedRuntime:
    """The first engine, with the base loaded."""
    return engines[0]
