"""The HTTP API: the same operations for programs, with JSON in and out and full error messages.

One endpoint per operation, made from the table of operations. Requests are the fields of
`backend.requests`, with the same permissions as the page. Results are those of `backend.results`,
except that `path` is called `folder`: Gradio's clients treat every object with a `path` as a file
and try to download it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from backend import OPERATIONS, Job, Service, errors
from backend import requests as rq
from backend import results as rs
from ui.components.caller import caller
from ui.components.feedback import for_api

WAIT_SECONDS = 3600.0
STREAMED = (rq.Chat, rq.SideBySide)
"""Operations that stream; of these only `Chat` has an endpoint."""
ANSWERED_AT_ONCE = (rq.Train, rq.Resume)
"""Long operations that return at once; their run shows the progress."""


class Endpoints:
    """The functions of the endpoints; those of plain operations are made by `of_operation`."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def of_operation(self, kind: type[rq.Request]) -> Callable[..., dict]:
        """Make the endpoint of one operation, with its name and documentation."""
        operation = next(name for name, each in rq.BY_NAME.items() if each is kind)
        answer = self._begin if kind in ANSWERED_AT_ONCE else self._whole

        def with_fields(request: dict) -> dict:
            return answer(operation, request)

        def without_fields() -> dict:
            return answer(operation, {})

        endpoint = with_fields if kind.model_fields else without_fields
        endpoint.__name__ = operation.replace("-", "_")
        endpoint.__doc__ = documentation(kind)
        return endpoint

    def chat(self, request: dict) -> Iterator[str]:
        """Answer a conversation (fields of Chat); each message is the answer so far."""
        answer = ""
        try:
            asked = self._parse("chat", request)
            pieces = self.service.chat(asked, caller=caller(self.service.settings))
            try:
                for piece in pieces:
                    answer += piece
                    yield answer
            finally:
                pieces.close()
        except errors.WorkbenchError as error:
            raise for_api(error) from None

    def snapshot(self) -> dict:
        """Return the whole state: session, adapters, runs and queue."""
        return _plain(self.service.snapshot())

    def runs(self) -> list:
        """Return all runs, newest first, each with its state and newest numbers."""
        return [_plain(run) for run in self.service.snapshot().runs]

    def events(self, run_id: str, since: int = 0) -> list:
        """Return a run's events with a `seq` above `since`."""
        try:
            found = self.service.events(run_id, int(since))
        except errors.WorkbenchError as error:
            raise for_api(error) from None
        return [event.model_dump(mode="json", exclude_none=True) for event in found]

    def enqueue(self, request: dict) -> dict:
        """Add a run to the queue (fields of Train); the snapshot lists the queue."""
        try:
            train = self._parse("train", request)
            return _plain(self.service.enqueue(train, caller=caller(self.service.settings)))
        except errors.WorkbenchError as error:
            raise for_api(error) from None

    def unqueue(self, id: str) -> dict:
        """Remove a run from the queue, by its id in the snapshot."""
        try:
            self.service.unqueue(id)
        except errors.WorkbenchError as error:
            raise for_api(error) from None
        return self.snapshot()

    def confirm_queued(self, id: str) -> dict:
        """Let a waiting run whose data has changed start with the data as it is now."""
        try:
            self.service.confirm_queued(id)
        except errors.WorkbenchError as error:
            raise for_api(error) from None
        return self.snapshot()

    def stop(self) -> dict:
        """Stop the running job cleanly; a second call stops it immediately."""
        self.service.stop()
        return self.snapshot()

    def pause(self) -> dict:
        """Pause the active run after its current step; the model can answer meanwhile."""
        self.service.pause()
        return self.snapshot()

    def unpause(self) -> dict:
        """Resume a paused run; the result is the same as without the pause."""
        self.service.resume()
        return self.snapshot()

    def adjust(self, request: dict) -> dict:
        """Change the active run from its next step: learning_rate, total_steps, watch."""
        try:
            if not isinstance(request, dict):
                raise errors.InvalidRequest("A request is an object with fields.")
            self.service.adjust(rq.Adjust(**request))
        except errors.WorkbenchError as error:
            raise for_api(error) from None
        return self.snapshot()

    def save_now(self) -> dict:
        """Write a checkpoint of the active run after its current step."""
        self.service.save_now()
        return self.snapshot()

    def _whole(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return _plain(self._start(name, request).result(timeout=WAIT_SECONDS))
        except (errors.WorkbenchError, TimeoutError) as error:
            raise for_api(error) from None

    def _begin(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"run_id": self._start(name, request).run_id}
        except errors.WorkbenchError as error:
            raise for_api(error) from None

    def _start(self, name: str, request: dict[str, Any]) -> Job:
        return self.service.start(self._parse(name, request), caller=caller(self.service.settings))

    def _parse(self, name: str, request: dict[str, Any]) -> Any:
        if not isinstance(request, dict):
            raise errors.InvalidRequest("A request is an object with fields.", cure="Send {...}.")
        return rq.parse(name, request)


def documentation(kind: type[rq.Request]) -> str:
    """Describe an operation: what it does, its fields, and what it returns."""
    does = " ".join((kind.__doc__ or "").split())
    fields = "; ".join(
        f"{name}{'' if field.is_required() else ' (optional)'}: {field.description or 'see Python'}"
        for name, field in kind.model_fields.items()
    )
    if kind in ANSWERED_AT_ONCE:
        back = "Returns run_id at once; see events and snapshot for the progress."
    else:
        names = ["folder" if n == "path" else n for n in OPERATIONS[kind].result.model_fields]
        back = f"Returns {', '.join(names)}."
    return f"{does} {f'Fields: {fields} ' if fields else ''}{back}"


def _plain(result: rs.Result) -> dict[str, Any]:
    """Return a result as JSON without any key called `path`."""

    def renamed(value: Any) -> Any:
        if isinstance(value, list):
            return [renamed(each) for each in value]
        if isinstance(value, dict):
            return {
                "folder" if key == "path" else key: renamed(each) for key, each in value.items()
            }
        return value

    plain = renamed(result.model_dump(mode="json"))
    assert isinstance(plain, dict)
    return plain


def add_endpoints(service: Service) -> None:
    """Register all endpoints in the page that is being built."""
    endpoints = Endpoints(service)
    operations = [endpoints.of_operation(kind) for kind in OPERATIONS if kind not in STREAMED]
    looks = (endpoints.chat, endpoints.snapshot, endpoints.runs, endpoints.events)
    queue = (endpoints.enqueue, endpoints.unqueue, endpoints.confirm_queued, endpoints.stop)
    steering = (endpoints.pause, endpoints.unpause, endpoints.save_now, endpoints.adjust)
    for endpoint in (*operations, *looks, *queue, *steering):
        gr.api(endpoint, api_name=endpoint.__name__, concurrency_limit=None)
