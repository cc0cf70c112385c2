"""A real service beside a plain account of what it should hold, compared after every step."""

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend import Service, Settings
from backend import requests as rq
from backend import results as rs
from backend.errors import DataError, InvalidRequest, ModelError, NotFound, Unsupported
from tests.oracle import oracle
from tests.oracle.adapters_from_outside import REWRITES_BASE, Sources
from tests.oracle.texts import TEXTS, distance

CLOSE = 1e-5
TIMEOUT_S = 120
REFUSALS = (DataError, InvalidRequest, ModelError, NotFound, Unsupported)
"""What an operation may say; anything else, a failed verification too, is a fault."""


@dataclass
class Tally:
    """How many steps of each kind were taken, and how far the session was from plain PEFT."""

    steps: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    largest: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def total(self) -> int:
        return sum(self.steps.values())

    def saw(self, kind: str, difference: float) -> None:
        self.largest[kind] = max(self.largest[kind], difference)


@dataclass(frozen=True)
class Known:
    """An adapter as it should be: its id, what plain PEFT shall load for it, and of which base."""

    id: str
    base: str
    folder: Path
    """The folder that a person brought, where there is one; else that of the library."""
    kept: Path
    """The folder of the library."""
    kind: str
    strength: str


class Workbench:
    """A service, and for each adapter, base and active set what should be there."""

    def __init__(self, folder: Path, sources: dict[str, Sources], tally: Tally) -> None:
        self.folder, self.sources, self.tally = folder, sources, tally
        self.service = Service(
            Settings(workspace=folder / "workspace", runtime="inline", allowed_roots=(folder,))
        )
        self.adapters: dict[str, Known] = {}
        self.deleted: list[tuple[str, Known]] = []
        self.active: list[tuple[str, float]] = []
        self.base = ""
        self.base_scores: dict[str, list[float]] = {}
        self.copies: list[tuple[Path, Known]] = []
        self.asked = False
        self._number = 0

    def close(self) -> None:
        self.service.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def fresh_path(self, stem: str) -> Path:
        """Return a path that nothing has used yet."""
        self._number += 1
        return self.folder / f"{stem}{self._number}"

    def run(self, request: rq.Request) -> Any:
        """Run an operation to its end."""
        self.asked = True
        return self.service.start(request).result(timeout=TIMEOUT_S)

    # -- what is there ---------------------------------------------------------------------------

    @property
    def own(self) -> Sources:
        """The sources of the loaded base."""
        return self.sources[self.base]

    def names(self, *, fitting: bool = True) -> list[str]:
        """Return the adapters of the loaded base, or those of the other."""
        return [n for n, known in self.adapters.items() if (known.base == self.base) == fitting]

    def loaded(self) -> set[str]:
        return {row.name for row in self.service.snapshot().status}

    def keep(self, info: rs.AdapterInfo, kind: str, folder: Path | None = None) -> None:
        """Remember an adapter that should be in the library from now on."""
        kept = self.service.library.folder(info.id)
        assert info.name not in self.adapters
        self.adapters[info.name] = Known(
            info.id, self.base, folder or kept, kept, kind, info.strength
        )

    def truth(self, variant: rq.Variant) -> list[float]:
        """Score a variant with plain PEFT, from what people brought where that is possible.

        PiSSA and OLoRA change the base itself, so PEFT is right about the original only where it
        is alone and at its own strength; else it gets the plain LoRA that the library holds.
        """
        parts = [(self.adapters[name], strength) for name, strength in variant]
        alone = len(parts) == 1 and parts[0][1] == 1.0
        return oracle.scores(
            self.own.base,
            [
                (known.folder if alone or known.kind not in REWRITES_BASE else known.kept, strength)
                for known, strength in parts
            ],
        )

    def scores(self, *variants: rq.Variant) -> list[list[float]]:
        """Score the texts as the session does."""
        request = rq.Score(texts=list(TEXTS), variants=list(variants))
        found: list[list[float]] = self.run(request).scores
        return found

    # -- comparing -------------------------------------------------------------------------------

    def compare(self, kind: str) -> None:
        """Compare everything that can be seen with what should be there."""
        snapshot = self.service.snapshot()
        assert snapshot.irregular == ""
        assert snapshot.active == self.active
        assert {info.name: info.id for info in snapshot.adapters} == {
            name: known.id for name, known in self.adapters.items()
        }
        assert {row.name for row in snapshot.status if row.active} == {n for n, _ in self.active}
        assert not any(row.trainable or row.merged for row in snapshot.status)
        assert {n for n, _ in self.active} <= self.loaded() <= set(self.names())
        active, alone = self.scores(self.active, [])
        self.close_to(kind, active, self.truth(self.active))
        before = self.base_scores.setdefault(self.base, alone)
        assert alone == before, "the base itself has changed"

    def close_to(self, kind: str, ours: Sequence[float], theirs: Sequence[float]) -> None:
        """Hold two lists of scores together."""
        difference = distance(ours, theirs)
        self.tally.saw(kind, difference)
        assert difference <= CLOSE, f"{kind}: {ours} and {theirs} differ by {difference:.1e}"

    def compare_blend(self, request: rq.Combine, ours: list[float]) -> None:
        """Hold a blend against the exact sum, or against PEFT's own blend where that is right."""
        sources, method, rank = request.sources, request.method, request.rank
        copied = len(sources) == 1 and not (method == "svd" and rank)
        if method == "cat" or copied:
            self.close_to(f"{method} against the sum", ours, self.truth(sources))
        parts = [(self.adapters[name].folder, weight) for name, weight in sources]
        if not oracle.blends_right(self.own.base, [folder for folder, _ in parts], rank):
            return
        more: dict[str, Any] = {"svd_rank": rank} if method.endswith("svd") else {}
        theirs = oracle.blended(
            self.own.base, parts, method, seed=request.seed, density=request.density, **more
        )
        self.close_to(f"{method} against PEFT's own", ours, theirs)

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Expect that what happens inside changes nothing at all, bit for bit."""
        before = self._everything()
        yield
        assert self._everything() == before

    def _everything(self) -> Any:
        snapshot, library = self.service.snapshot(), self.service.library
        files = {
            path.relative_to(library.root): path.stat().st_size
            for path in library.root.rglob("*")
            if path.is_file()
        }
        scores = self.scores(self.active, [])
        return (
            snapshot.active, snapshot.adapters, snapshot.deleted, snapshot.base,
            sorted(row.name for row in snapshot.status if row.active), files, scores,
        )  # fmt: skip

    def refuse(self, kind: str, request: rq.Request) -> None:
        """Expect an operation to be refused in words, and to change nothing."""
        self.tally.refused[kind] += 1
        with self.untouched():
            try:
                self.run(request)
            except REFUSALS:
                return
            raise AssertionError(f"{kind} was expected to be refused: {request!r}")
