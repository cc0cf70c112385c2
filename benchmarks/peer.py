"""A peer in a process of its own, as a script that a person starts: nothing of ours in its way.

It keeps its process from call to call, so that only the first one pays for the start.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from transformers.utils import logging as transformers_logging

Given = ParamSpec("Given")
Found = TypeVar("Found")


class Peer:
    """One process that computes what it is given, in the environment that this one has."""

    def __init__(self) -> None:
        spawned = get_context("spawn")  # a fork would share this process's threads and allocator
        self._pool = ProcessPoolExecutor(
            1, mp_context=spawned, initializer=transformers_logging.disable_progress_bar
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()

    def run(
        self, function: Callable[Given, Found], *args: Given.args, **kwargs: Given.kwargs
    ) -> Found:
        """Call a function of a module there; returns what it returns."""
        return self._pool.submit(function, *args, **kwargs).result()
