"""How long compiling a hot-swap slot takes on this machine: an estimate, then a measurement."""

import json
from pathlib import Path

from backend.files import damaged_files
from backend.files.atomic_files import write_text

FIXED_S, PER_LAYER_S = 30.0, 22.0
"""Measured on two CPU cores: every layer is compiled, and its size does not matter."""


class CompileTimes:
    """Stores the ratio of measured to estimated time of the last compilation."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def expected(self, layers: int) -> float:
        """Return the expected seconds of compiling a base with this many layers."""
        return self._factor() * _guess(layers)

    def note(self, layers: int, seconds: float) -> None:
        """Store the measured time; raises DiskFull."""
        write_text(self._file, json.dumps({"factor": seconds / _guess(layers)}))

    def _factor(self) -> float:
        found = damaged_files.read_measured(self._file, _parse, missing=1.0)
        return found if 0 < found < 1000 else 1.0


def _parse(content: bytes) -> float:
    return float(json.loads(content)["factor"])


def _guess(layers: int) -> float:
    return FIXED_S + PER_LAYER_S * layers
