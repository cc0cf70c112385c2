"""A machine that does anything that the workbench can do with adapters, in any order.

Every step is one operation of the real service. After it, the session is compared with plain PEFT
on a fresh base (`workbench.compare`); a step that is refused must leave everything bit for bit.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from backend import requests as rq
from tests.oracle import faults, oracle
from tests.oracle.adapters_from_outside import REFUSED, TAKEN, Sources
from tests.oracle.step import Step
from tests.oracle.workbench import REFUSALS, Tally, Workbench

STRENGTHS = st.sampled_from([1.0, 0.5, -0.7, 1.6, 0.0])
BLENDS = st.sampled_from(sorted(get_args(rq.BlendMethod)))
NAMES = ("red", "blue", "green", "Red 2", "a-b_c", "layers", "q_proj", "default")
COSTLY = 2
"""Training and merging take a second each: so often in one sequence at most."""
BROKEN = sorted([*REFUSED, *("not finite", "hidden weights", "pickle", "other shape")])
BROKEN += ["hanging", "incomplete"]


class AdapterMachine(RuleBasedStateMachine):
    """Random sequences; a subclass gives `sources` by base and a `tally`."""

    sources: dict[str, Sources]
    tally: Tally
    before_step: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self) -> None:
        super().__init__()
        self.bench: Workbench | None = None
        self.costly = 0

    def teardown(self) -> None:
        if self.bench is not None:
            self.bench.close()

    @initialize(base=st.sampled_from(["untied", "tied"]), data=st.data())
    def open(self, base: str, data: st.DataObject) -> None:
        self.bench = Workbench(Path(tempfile.mkdtemp(prefix="oracle-")), self.sources, self.tally)
        self._load_base(base)
        for kind in data.draw(st.lists(st.sampled_from(sorted(TAKEN)), min_size=2, max_size=3)):
            self._add(kind, zipped=False, name="")
        self.bench.compare("open")

    # -- adapters come ---------------------------------------------------------------------------

    @rule(
        kind=st.sampled_from(sorted(TAKEN)),
        zipped=st.booleans(),
        name=st.sampled_from(["", *NAMES]),
    )
    def add(self, kind: str, zipped: bool, name: str) -> None:
        with self._step("add") as bench:
            if self._taken(name):
                source = str(bench.own.taken[kind])
                bench.refuse("add", rq.LoadAdapter(source=source, name=name))
            else:
                added = self._add(kind, zipped=zipped, name=name)
                bench.close_to("add", *self._alone(added))

    @rule(broken=st.sampled_from(BROKEN), zipped=st.booleans())
    def add_what_is_refused(self, broken: str, zipped: bool) -> None:
        with self._step("add, refused") as bench:
            source = self._source(bench.own.refused[broken], zipped=zipped)
            bench.refuse(f"add {broken}", rq.LoadAdapter(source=source))

    @rule(data=st.data())
    def load_from_library(self, data: st.DataObject) -> None:
        with self._step("load") as bench:
            if not bench.adapters:
                return
            name = data.draw(st.sampled_from(sorted(bench.adapters)))
            request = rq.LoadAdapter(source=f"library:{name}")
            if name in bench.names():
                bench.run(request)
                assert name in bench.loaded()
            else:
                bench.refuse("load for another base", request)

    @rule(data=st.data(), name=st.sampled_from(["", *NAMES]))
    def add_a_saved_copy(self, data: st.DataObject, name: str) -> None:
        with self._step("add a copy") as bench:
            copies = [c for c in bench.copies if c[1].base == bench.base]
            if not copies or self._taken(name):
                return
            folder, known = data.draw(st.sampled_from(copies))
            added = bench.run(rq.LoadAdapter(source=str(folder), name=name)).adapter
            bench.keep(added, known.kind, known.folder)
            bench.close_to("add a copy", *self._alone(added.name))

    # -- which of them answer --------------------------------------------------------------------

    @rule(data=st.data())
    def activate(self, data: st.DataObject) -> None:
        with self._step("activate") as bench:
            variant = self._variant(data, "active")
            bench.run(rq.SetActive(adapters=variant))
            bench.active = variant

    @rule(data=st.data(), strength=STRENGTHS)
    def activate_what_is_refused(self, data: st.DataObject, strength: float) -> None:
        with self._step("activate, refused") as bench:
            good = self._variant(data, "good part")
            wrong = [("nobody", strength), *good[:1] * 2]
            wrong += [(n, 1.0) for n in bench.names(fitting=False)]
            wrong += [(n, 0.5) for n in bench.names() if bench.adapters[n].strength == "on-off"]
            variant = [*good, data.draw(st.sampled_from(wrong), label="wrong part")]
            bench.refuse("activate", rq.SetActive(adapters=variant))
            bench.refuse("score", rq.Score(texts=["a b"], variants=[[], variant]))

    @rule(data=st.data())
    def ask_other_variants(self, data: st.DataObject) -> None:
        with self._step("ask others") as bench:
            first, second = self._variant(data, "first"), self._variant(data, "second")
            turn = [rq.Message(role="user", content="Who are you?")]
            with bench.untouched():
                one, two = bench.scores(first, second)
                request = rq.SideBySide(
                    conversations=[turn] * 3, variants=[first, second, []], max_new_tokens=3
                )
                bench.run(request)
                bench.run(rq.NextToken(prompt="Hello", variants=[second, []]))
            bench.close_to("ask others", one, bench.truth(first))
            bench.close_to("ask others", two, bench.truth(second))

    # -- new ones of old ones --------------------------------------------------------------------

    @rule(
        data=st.data(),
        method=st.one_of(st.just("cat"), BLENDS),
        name=st.sampled_from(NAMES),
        rank=st.sampled_from([None, 1, 6, 40]),
    )
    def combine(self, data: st.DataObject, method: Any, name: str, rank: int | None) -> None:
        with self._step("combine") as bench:
            sources = self._variant(data, "ingredients", any_weight=True)
            if not sources:
                return
            request = rq.Combine(name=name, sources=sources, method=method, rank=rank)
            dora = any(bench.adapters[n].strength == "on-off" for n, _ in sources)
            if dora or self._taken(name):
                bench.refuse("combine", request)
                return
            blend = self._or_untouched(request)
            if blend is not None:
                bench.keep(blend.adapter, "blend")
                ours = bench.scores([(name, 1.0)])[0]
                bench.close_to(f"combine {method}", ours, bench.truth([(name, 1.0)]))
                bench.compare_blend(request, ours)

    @rule(data=st.data(), name=st.sampled_from(NAMES), rank=st.sampled_from([None, 2, 30, 4000]))
    def convert(self, data: st.DataObject, name: str, rank: int | None) -> None:
        with self._step("convert") as bench:
            if not bench.adapters:
                return
            old = data.draw(st.sampled_from(sorted(bench.adapters)))
            request = rq.ConvertAdapter(name=old, new_name=name, rank=rank)
            room = oracle.largest_rank(bench.adapters[old].folder)
            if self._taken(name) or old not in bench.names() or (rank or 0) > room:
                bench.refuse("convert", request)
                return
            made = bench.run(request)
            bench.keep(made.adapter, "converted")
            ours = bench.scores([(name, 1.0)])[0]
            bench.close_to("convert", ours, bench.truth([(name, 1.0)]))
            if made.relative_error < 1e-6:
                bench.close_to("convert, exactly", ours, bench.truth([(old, 1.0)]))
            cut = oracle.compressed(bench.own.base, bench.adapters[old].folder, made.rank)
            bench.close_to("convert against an SVD of the merge", ours, cut)

    @precondition(lambda self: self.costly < COSTLY)
    @rule(data=st.data(), name=st.sampled_from(NAMES), dora=st.booleans(), onwards=st.booleans())
    def train(self, data: st.DataObject, name: str, dora: bool, onwards: bool) -> None:
        with self._step("train") as bench:
            names = bench.names()
            start = data.draw(st.sampled_from(names)) if onwards and names else None
            request = rq.Train(
                name=name,
                data=str(bench.own.data),
                adapter=rq.Lora(rank=2, use_dora=dora, targets=["q_proj", "up_proj"]),
                max_steps=2,
                eval_share=0,
                precision="fp32",
                start_from=start,
            )
            if self._taken(name):
                bench.refuse("train", request)
                return
            self.costly += 1
            result = self._or_untouched(request)
            if result is not None:
                bench.keep(bench.service.library.get(name), "trained")
                bench.close_to("train", *self._alone(name))

    @precondition(lambda self: self.costly < COSTLY)
    @rule(data=st.data())
    def merge(self, data: st.DataObject) -> None:
        with self._step("merge") as bench:
            variant = self._variant(data, "to merge")
            if not variant:
                return
            self.costly += 1
            folder = bench.fresh_path("merged")
            request = rq.Merge(variant=variant, destination=str(folder))
            several_dora = sum(bench.adapters[n].strength == "on-off" for n, _ in variant) > 1
            if several_dora:  # PEFT itself merges them otherwise than it answers with them
                self._or_untouched(request)
                return
            with bench.untouched():
                bench.run(request)
            merged = oracle.scores(folder, [])
            bench.close_to("merge", merged, bench.truth(variant))
            bench.refuse("merge", request)

    # -- their names and files -------------------------------------------------------------------

    @rule(data=st.data())
    def save(self, data: st.DataObject) -> None:
        with self._step("save") as bench:
            names = bench.names()
            if not names:
                return
            name = data.draw(st.sampled_from(names))
            folder = bench.fresh_path("copy")
            request = rq.SaveAdapter(name=name, destination=str(folder))
            bench.run(request)
            known = bench.adapters[name]
            if known.folder == known.kept:  # the library's own folder, which deleting moves away
                known = replace(known, folder=folder)
            bench.copies.append((folder, known))
            written = oracle.scores(bench.own.base, [(folder, 1.0)])
            bench.close_to("save", written, bench.truth([(name, 1.0)]))
            bench.refuse("save", request)

    @rule(data=st.data(), new=st.sampled_from(NAMES))
    def rename(self, data: st.DataObject, new: str) -> None:
        with self._step("rename") as bench:
            if not bench.adapters:
                return
            old = data.draw(st.sampled_from(sorted(bench.adapters)))
            request = rq.RenameAdapter(name=old, new_name=new)
            if self._taken(new) and new.casefold() != old.casefold():
                bench.refuse("rename", request)
                return
            bench.run(request)
            bench.adapters[new] = bench.adapters.pop(old)
            bench.active = [(new if n == old else n, s) for n, s in bench.active]

    @rule(data=st.data())
    def unload(self, data: st.DataObject) -> None:
        with self._step("unload") as bench:
            if not bench.adapters:
                return
            name = data.draw(st.sampled_from(sorted(bench.adapters)))
            request = rq.UnloadAdapter(name=name)
            if name not in bench.loaded():
                bench.refuse("unload", request)
                return
            bench.run(request)
            self._off(name)
            assert name not in bench.loaded()

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        with self._step("delete") as bench:
            if not bench.adapters:
                return
            name = data.draw(st.sampled_from(sorted(bench.adapters)))
            bench.run(rq.DeleteAdapter(name=name))
            bench.deleted.append((name, bench.adapters.pop(name)))
            self._off(name)
            bench.refuse("delete", rq.DeleteAdapter(name=name))

    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        with self._step("restore") as bench:
            bench.refuse("restore", rq.RestoreAdapter(name="nobody"))
            if not bench.deleted:
                return
            name = data.draw(st.sampled_from(sorted({name for name, _ in bench.deleted})))
            info = bench.run(rq.RestoreAdapter(name=name)).adapter
            wanted = [e for e in bench.deleted if e[0].casefold() == name.casefold()][-1]
            assert info.id == wanted[1].id
            assert info.name == name or self._taken(name)
            bench.deleted.remove(wanted)
            bench.adapters[info.name] = wanted[1]

    # -- the base, and faults --------------------------------------------------------------------

    @rule(base=st.sampled_from(["untied", "tied", "nothing"]))
    def load_base(self, base: str) -> None:
        with self._step("load base") as bench:
            if base == "nothing":
                bench.refuse("load base", rq.LoadModel(source=str(bench.folder / "nothing")))
            else:
                self._load_base(base)

    @rule(
        data=st.data(),
        what=st.sampled_from(["add", "combine", "convert", "save"]),
        late=st.booleans(),
    )
    def fail_to_verify(self, data: st.DataObject, what: str, late: bool) -> None:
        with self._step("fail") as bench:
            names = [n for n in bench.names() if bench.adapters[n].strength == "any"]
            if what == "add" or not names:
                source = data.draw(st.sampled_from(sorted(bench.own.taken.items())))[1]
                request: rq.Request = rq.LoadAdapter(source=str(source), name="lost")
            else:
                request = faults.that_writes(bench, what, data.draw(st.sampled_from(names)))
            faults.must_be_noticed(bench, request, late=late)

    # -- pieces of the above ---------------------------------------------------------------------

    def _step(self, kind: str) -> Step:
        return Step(self, kind)

    def _load_base(self, base: str) -> None:
        bench = self.bench
        assert bench is not None
        bench.run(rq.LoadModel(source=str(self.sources[base].base)))
        bench.base, bench.active = base, []

    def _add(self, kind: str, *, zipped: bool, name: str) -> str:
        bench = self.bench
        assert bench is not None
        source = self._source(bench.own.taken[kind], zipped=zipped)
        added = bench.run(rq.LoadAdapter(source=source, name=name)).adapter
        assert added.name == name or not name
        bench.keep(added, kind, bench.own.taken[kind])
        return str(added.name)

    def _source(self, folder: Path, *, zipped: bool) -> str:
        assert self.bench is not None
        if not zipped:
            return str(folder)
        return shutil.make_archive(str(self.bench.fresh_path("zip")), "zip", root_dir=folder)

    def _taken(self, name: str) -> bool:
        assert self.bench is not None
        return name.casefold() in {each.casefold() for each in self.bench.adapters}

    def _off(self, name: str) -> None:
        assert self.bench is not None
        self.bench.active = [(n, s) for n, s in self.bench.active if n != name]

    def _alone(self, name: str) -> tuple[list[float], list[float]]:
        assert self.bench is not None
        variant = [(name, 1.0)]
        return self.bench.scores(variant)[0], self.bench.truth(variant)

    def _variant(
        self, data: st.DataObject, label: str, *, any_weight: bool = False
    ) -> list[tuple[str, float]]:
        """Draw adapters of the base with strengths that mean something for them."""
        bench = self.bench
        assert bench is not None
        if not bench.names():
            return []
        size = min(data.draw(st.sampled_from([2, 1, 3, 0])), len(bench.names()))
        some = st.lists(st.sampled_from(bench.names()), min_size=size, max_size=size, unique=True)
        names = data.draw(some, label=label)
        graded = [any_weight or bench.adapters[name].strength == "any" for name in names]
        return [
            (name, data.draw(STRENGTHS) if free else 1.0)
            for name, free in zip(names, graded, strict=True)
        ]

    def _or_untouched(self, request: rq.Request) -> Any:
        """Return an operation's result, or None where it was refused and changed nothing."""
        assert self.bench is not None
        before = self.bench._everything()
        try:
            return self.bench.run(request)
        except REFUSALS:
            self.tally.refused[rq.name_of(request)] += 1
            assert self.bench._everything() == before
            return None
