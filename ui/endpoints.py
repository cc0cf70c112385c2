"""The same operations over HTTP, for programs: typed, JSON in and out, errors word for word.

Requests are the fields of `backend.requests`; what the page may not do, a program may not either.
Results are those of `backend.results`, except that a `path` is called `folder`: Gradio's clients
take every object with a `path` for a file and try to download it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from backend import Service, errors
from backend import requests as rq
from backend import results as rs
from ui.feedback import for_api

WAIT_SECONDS = 3600.0


class Endpoints:
    """One method per endpoint; its name is the endpoint's name."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def load_model(self, request: dict) -> dict:
        """Load a base model, fields of LoadModel; returns its facts."""
        return self._whole("load-model", request)

    def preflight(self, request: dict) -> dict:
        """Look at a training run before it starts: {"train": fields of Train}."""
        return self._whole("preflight", request)

    def preview_data(self, request: dict) -> dict:
        """Look at data as the model would see it, fields of PreviewData."""
        return self._whole("preview-data", request)

    def train(self, request: dict) -> dict:
        """Start a training, fields of Train; returns {"run_id"} at once."""
        return self._begin("train", request)

    def resume(self, request: dict) -> dict:
        """Go on with a run, {"run_id"}; returns {"run_id"} at once."""
        return self._begin("resume", request)

    def set_active(self, request: dict) -> dict:
        """Choose which adapter answers: {"adapters": [["name", 1.0]]} or an empty list."""
        return self._whole("set-active", request)

    def save_adapter(self, request: dict) -> dict:
        """Write a copy of an adapter: {"name", "destination"}."""
        return self._whole("save-adapter", request)

    def compare(self, request: dict) -> dict:
        """Answer prompts with several variants, fields of Compare."""
        return self._whole("compare", request)

    def score(self, request: dict) -> dict:
        """Score texts under several variants, fields of Score."""
        return self._whole("score", request)

    def chat(self, request: dict) -> Iterator[str]:
        """Answer a conversation, fields of Chat; each message is the answer so far."""
        answer = ""
        try:
            pieces = self.service.chat(self._parse("chat", request), caller="page")
            try:
                for piece in pieces:
                    answer += piece
                    yield answer
            finally:
                pieces.close()
        except errors.WorkbenchError as error:
            raise for_api(error) from None

    def snapshot(self) -> dict:
        """Return the state of everything."""
        return _plain(self.service.snapshot())

    def events(self, run_id: str, since: int = 0) -> list:
        """Return a run's events with a `seq` above `since`."""
        try:
            found = self.service.events(run_id, int(since))
        except errors.WorkbenchError as error:
            raise for_api(error) from None
        return [event.model_dump(mode="json", exclude_none=True) for event in found]

    def stop(self) -> dict:
        """Ask the running job to end well; asked again, it ends at once."""
        self.service.stop()
        return self.snapshot()

    def _whole(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        try:
            job = self.service.start(self._parse(name, request), caller="page")
            return _plain(job.result(timeout=WAIT_SECONDS))
        except (errors.WorkbenchError, TimeoutError) as error:
            raise for_api(error) from None

    def _begin(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        try:
            job = self.service.start(self._parse(name, request), caller="page")
        except errors.WorkbenchError as error:
            raise for_api(error) from None
        return {"run_id": job.run_id}

    def _parse(self, name: str, request: dict[str, Any]) -> Any:
        if not isinstance(request, dict):
            raise errors.InvalidRequest("A request is an object with fields.", cure="Send {...}.")
        return rq.parse(name, request)


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
    """Register all endpoints with the page that is being built."""
    endpoints = Endpoints(service)
    public: tuple[Callable[..., Any], ...] = (
        endpoints.load_model,
        endpoints.preflight,
        endpoints.preview_data,
        endpoints.train,
        endpoints.resume,
        endpoints.set_active,
        endpoints.save_adapter,
        endpoints.compare,
        endpoints.score,
        endpoints.chat,
        endpoints.snapshot,
        endpoints.events,
        endpoints.stop,
    )
    for endpoint in public:
        gr.api(endpoint, api_name=endpoint.__name__, concurrency_limit=None)
