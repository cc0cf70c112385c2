"""Data sets on a Hub stand-in, opened in a process of its own, in a folder of its own.

huggingface_hub reads the Hub's address and its cache folder when it is imported.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from backend.settings import PROJECT
from tests.hub_stand_in import HubStandIn, Repository

CALL = """
import json, sys
from backend import requests as rq
from backend.engine.core.job_control import Control
from backend.engine.data_files.sources import open_source
from backend.engine.hub_data import description
from backend.errors import WorkbenchError

def opened(source):
    found = open_source(source)
    parts = [found.tables, found.held_out]
    rows = [[row for table in part for _, row in table.rows()] for part in parts]
    return {"rows": rows[0], "held_out": rows[1], "notes": found.notes}

def downloaded(source, stop_after=None):
    told = []
    control = Control(1, lambda message: listen(message))
    def listen(message):
        told.append(message["text"])
        if stop_after and message["text"].startswith("Downloading "):
            control.hear("stop")
    try:
        done = description.download(rq.DownloadHubData(data=source), control)
        return {**done.model_dump(mode="json"), "told": told}
    except WorkbenchError as error:
        return {"error": f"{type(error).__name__}: {error}", "told": told}

CALLS = {
    "open": opened,
    "describe": lambda source: description.describe(
        rq.DescribeHubData(data=source)).model_dump(mode="json"),
    "download": downloaded,
    "download-and-stop": lambda source: downloaded(source, True),
}
answers = []
for what, source in json.loads(sys.argv[1]):
    try:
        answers.append(CALLS[what](source))
    except WorkbenchError as error:
        answers.append(f"{type(error).__name__}: {error}")
print(json.dumps(answers))
"""


class Bench:
    """A Hub with data sets, and processes that open them."""

    def __init__(self, hub: HubStandIn, root: Path) -> None:
        self.hub, self.root = hub, root
        (root / "work").mkdir(parents=True, exist_ok=True)

    def add(
        self, name: str, readme: str = "", *, gated: bool = False, card: Any = None,
        **files: str | bytes,
    ) -> str:  # fmt: skip
        """Add a data set; in the names of files, `__` stands for a dot and `___` for a slash."""
        folder = self.root / "repositories" / name
        folder.mkdir(parents=True)
        (folder / "README.md").write_text(readme, encoding="utf-8")
        for file, content in files.items():
            path = folder / file.replace("___", "/").replace("__", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        self.hub.repositories[f"datasets/someone/{name}"] = Repository(
            folder, gated=gated, card=card
        )
        return f"someone/{name}"

    def ask(self, *calls: tuple[str, str]) -> list[Any]:
        """Return the answers to some calls, made one after the other in a new process."""
        done = subprocess.run(
            [sys.executable, "-c", CALL, json.dumps(calls)],
            cwd=self.root / "work", env={**os.environ, "PYTHONPATH": str(PROJECT)},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        answers: list[Any] = json.loads(done.stdout.splitlines()[-1])
        return answers

    def open(self, source: str) -> Any:
        """Return the rows of a data set, or the error."""
        (answer,) = self.ask(("open", source))
        return answer if isinstance(answer, str) else answer["rows"]

    def kept(self) -> str:
        """Return all that lies in the Hub's caches."""
        files = [path for path in (self.root / "home").rglob("*") if path.is_file()]
        return "".join(path.read_bytes().decode("utf-8", "replace") for path in files)


def lines(*rows: Any) -> str:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def metadata(**said: Any) -> str:
    """Return a README with these metadata; JSON is YAML, too."""
    return f"---\n{json.dumps(said)}\n---\n# Data\n"
