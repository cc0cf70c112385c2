"""How long it takes to compile a hot-swap slot on this machine: a guess, then what it took."""

import json
from pathlib import Path

from backend.files import damaged_files
from backend.files.atomic_files import write_text

FIXED_S, PER_LAYER_S = 30.0, 22.0
"""Measured on two CPU cores: code is made for every layer, whatever its size."""


class CompileTimes:
    """Remembers how much longer than the guess the last compilation took."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def expected(self, layers: int) -> float:
        """Return the seconds that compiling around a base of so many layers will take."""
        return self._factor() * _guess(layers)

    def note(self, layers: int, seconds: float) -> None:
        """Remember what it took; raises DiskFull."""
        write_text(self._file, json.dumps({"factor": seconds / _guess(layers)}))

    def _factor(self) -> float:
        found = damaged_files.read_measured(self._file, _parse, missing=1.0)
        return found if 0 < found < 1000 else 1.0


def _parse(content: bytes) -> float:
    return float(json.loads(content)["factor"])


def _guess(layers: int) -> float:
    return FIXED_S + PER_LAYER_S * layers
