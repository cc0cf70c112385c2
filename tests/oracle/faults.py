"""Files that do not read back as they were written: an operation that misses it is at fault."""

from typing import Any
from unittest import mock

from backend import requests as rq
from backend.engine.adapters import saving
from backend.errors import VerificationFailed
from tests.oracle.workbench import Workbench


def that_writes(bench: Workbench, what: str, name: str) -> rq.Request:
    """Return a request that makes something of an adapter and writes it."""
    requests: dict[str, rq.Request] = {
        "combine": rq.Combine(name="lost", sources=[(name, 0.5)]),
        "convert": rq.ConvertAdapter(name=name, new_name="lost"),
        "save": rq.SaveAdapter(name=name, destination=str(bench.fresh_path("lost"))),
    }
    return requests[what]


def must_be_noticed(bench: Workbench, request: rq.Request, *, late: bool) -> None:
    """Let what a request writes fail to verify: it is to say so and to change nothing."""
    failing = mock.patch.object(saving, "require_close" if late else "verify", fail_verification)
    with bench.untouched(), failing:
        try:
            bench.run(request)
        except VerificationFailed:
            return
        raise AssertionError(f"{rq.name_of(request)} did not notice that it failed")


def fail_verification(*_: Any, **__: Any) -> float:
    raise VerificationFailed("The answers differ.")
