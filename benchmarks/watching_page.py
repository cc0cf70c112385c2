"""A page that watches a run, without a browser: the same requests at the same times.

It does what the page's scripts do: asks once a second what is new, has the tab redrawn when more
changed than the numbers of a run, and asks for the points of the chart on the Train tab.
"""

import threading
import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import httpx

from ui.app.polling import BEAT_MS, DRAW, REST_MS

POINTS_EVERY_S = 2.0
BEAT_S = BEAT_MS / 1000
REST_S = REST_MS / 1000
CHART = "train-chart"
PULSE = "pulse"
TAB = "train"


class WatchingPage:
    """One open page. `watch` tells it which run its chart shows."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=60)
        self._session = uuid.uuid4().hex[:11]
        self._config = self._http.get("/config").json()
        self._components = {c["id"]: c for c in self._config["components"]}
        self._by_name = {c["props"].get("elem_id"): c["id"] for c in self._config["components"]}
        self._drawing = self._find(DRAW + TAB)
        self._opening = next(d for d in self._config["dependencies"] if d["api_name"] == "attach")
        self._state = 0
        self._marks: dict[str, str] = {}
        self._drawn = 0.0
        self._run: str | None = None
        self._seq = 0
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(self.beat, BEAT_S), daemon=True),
            threading.Thread(
                target=self._repeat, args=(self.ask_points, POINTS_EVERY_S), daemon=True
            ),
        ]
        self.requests = 0
        self.bytes = 0

    def __enter__(self) -> Self:
        self.attach()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self.close()

    def close(self) -> None:
        """Let the connection go; a page that was never watching needs only this."""
        self._http.close()

    def attach(self) -> None:
        """Be opened: have the form filled, without which nothing is drawn."""
        self.draw(self._opening)

    def watch(self, run_id: str) -> None:
        """Show this run from now on."""
        self._run, self._seq = run_id, 0

    def beat(self) -> None:
        """Ask what is new, and have the tab redrawn when its state changed."""
        asked = {"tab": TAB, "run": self._run or "", "shown": self._marks}
        news = self._ask_server(PULSE, "news", asked).json()
        self._marks |= {name: view["mark"] for name, view in news["views"].items()}
        now = time.monotonic()
        if news["state"] != self._state and now - self._drawn > REST_S:
            self._state, self._drawn = news["state"], now
            self.draw(self._drawing)

    def draw(self, drawing: dict[str, Any]) -> None:
        """Have the page drawn, as the pulse does."""
        body = {
            "data": [self._value(id) for id in drawing["inputs"]],
            "event_data": {},
            "fn_index": drawing["id"],
            "trigger_id": self._by_name[PULSE],
            "session_hash": self._session,
        }
        response = self._http.post("/gradio_api/run/predict", json=body).raise_for_status()
        self.bytes += len(response.content)
        self.requests += 1

    def ask_points(self) -> None:
        """Do what a chart does that shows a run."""
        if self._run is None:
            return
        response = self.points(self._run, self._seq)
        self._seq = response.json().get("seq", 0)

    def points(self, run_id: str, seq: int) -> httpx.Response:
        """Ask for the chart's points after `seq`."""
        return self._ask_server(CHART, "points", {"run": run_id, "seq": seq})

    def _ask_server(self, component: str, function: str, data: Any) -> httpx.Response:
        """Call a server function as a component's script does."""
        response = self._http.post(
            "/gradio_api/component_server",
            json={
                "data": data,
                "component_id": self._by_name[component],
                "fn_name": function,
                "session_hash": self._session,
            },
        )
        response.raise_for_status()
        self.requests += 1
        self.bytes += len(response.content)
        return response

    def _find(self, event: str) -> dict[str, Any]:
        """Return what the page's pulse calls."""
        pulse = [self._by_name[PULSE], event]
        for dependency in self._config["dependencies"]:
            if pulse in dependency["targets"]:
                return dict(dependency)
        raise RuntimeError("The page has no pulse.")

    def _value(self, component: int) -> Any:
        """Return what a fresh page sends of a component; states stay on the server."""
        found = self._components[component]
        return None if found["type"] == "state" else found["props"].get("value")

    def _repeat(self, ask: Callable[[], None], every: float) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            ask()
            self._over.wait(max(0.0, every - (time.monotonic() - began)))
