"""The session: one base model, its adapters, and which of them answer. Owns every change of them.

Adapters are known here by internal id. After each operation the model is in evaluation mode with
nothing trainable, whatever happened in between.

Switching writes the active list and the scalings of each adapted layer directly: PEFT's own
`set_adapter` also walks through every module and parameter, which takes longer than a token.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

import torch
from peft import LoraConfig, PeftModel
from peft.peft_model import TunerModelStatus
from peft.tuners.lora import LoraLayer

from backend.engine.core import memory
from backend.engine.core.job_control import Control
from backend.engine.methods import fast_load, file_validation, peft_io
from backend.engine.models import loading
from backend.engine.models.linear_layers import Target, linear_layers
from backend.errors import InvalidRequest, NotFound, Unsupported
from backend.library import Library
from backend.requests import LoadModel, Variant
from backend.results import AdapterInfo, AdapterStatus, ModelFacts

ActiveIds = list[tuple[str, float]]
log = logging.getLogger(__name__)


class AdapterSlot(Protocol):
    """What the session knows of a prepared hot-swap slot, which then answers for it."""

    @property
    def active(self) -> Variant: ...

    def resolve(self, variant: Variant) -> ActiveIds: ...

    def using_ids(self, wanted: ActiveIds) -> AbstractContextManager[None]: ...


class Session:
    """A base model with adapters; `active` holds internal ids with their strengths."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.peft: PeftModel | None = None
        self.slot: AdapterSlot | None = None
        self.learning: AdapterInfo | None = None
        """The adapter of a paused run, which is in no library yet."""
        self.held_by_earlier_runs: dict[str, int] = {}
        """Bytes that runs on this base left for the next one, by the precision of their steps."""
        self._base: loading.Base | None = None
        self._active: ActiveIds = []
        self._targets: list[Target] | None = None
        self._adapted: dict[str, LoraLayer] = {}
        self._strengths: dict[str, float] = {}

    @property
    def base(self) -> loading.Base:
        """The loaded base; raises NotFound where there is none."""
        if self._base is None:
            raise NotFound("No base model is loaded.", cure="Load one first: the starter is quick.")
        return self._base

    @property
    def facts(self) -> ModelFacts | None:
        return self._base.facts if self._base else None

    @property
    def model(self) -> torch.nn.Module:
        """What computes answers: the base, wrapped once it has adapters."""
        if self.slot is not None:
            return self.base.model
        return self.peft if self.peft is not None else self.base.model

    @property
    def active(self) -> Variant:
        """The active adapters by display name."""
        return [(self.name_of(id), strength) for id, strength in self._active]

    @property
    def active_ids(self) -> ActiveIds:
        """The active adapters by internal id."""
        return list(self._active)

    def load_base(self, request: LoadModel, control: Control) -> ModelFacts:
        """Replace the base, or keep the old one where the new one cannot be loaded.

        The old one leaves before weights are read, so that both never need memory together; it
        comes back if reading fails.
        """
        plan = loading.prepare(request, control)
        old, active = self._base.plan if self._base else None, self.active
        self.unload()
        try:
            self._base = loading.load_prepared(plan, control)
        except Exception as error:
            if old is not None:
                log.info("The earlier base comes back: %s", error)
                self._base = loading.load_prepared(old, control)
                self.set_active(active)
            raise
        return self._base.facts

    def unload(self) -> int:
        """Let base and adapters go; returns the bytes given back."""
        if self._base is None:
            return 0
        device = self._base.device
        before = memory.resident(device)
        self._base, self.peft, self._active, self._targets = None, None, [], None
        self._adapted, self._strengths = {}, {}
        self.held_by_earlier_runs = {}
        memory.release(device)
        return max(before - memory.resident(device), 0)

    def release(self) -> None:
        """Give back what a broken-off operation left behind, before the next one needs it."""
        memory.release(self._base.device if self._base else torch.device("cpu"))

    # -- adapters on the model -------------------------------------------------------------------

    def new_id(self) -> str:
        """Return an id that no adapter has: PEFT 0.21.2 would load one into another of its name."""
        return self.library.new_id(self.peft.peft_config if self.peft is not None else ())

    def layers(self) -> list[Target]:
        """Return the layers of the base that an adapter can change; adapters do not alter them."""
        if self._targets is None:
            self._targets = linear_layers(self.base.model)
        return self._targets

    def adapted(self) -> dict[str, LoraLayer]:
        """Return the layers that hold adapters now, by the base's own module names."""
        return self._adapted

    def is_loaded(self, adapter_id: str) -> bool:
        return self.peft is not None and adapter_id in self.peft.peft_config

    def name_of(self, adapter_id: str) -> str:
        """Return an adapter's display name, or its id where the library does not know it."""
        learning = self.learning
        if learning is not None and learning.id == adapter_id:
            return learning.name
        info = self.library.by_id(adapter_id)
        return info.name if info else adapter_id

    def find(self, name: str) -> AdapterInfo:
        """Return an adapter by its display name, also one that is half-trained; raises NotFound."""
        learning = self.learning
        if learning is not None and learning.name.casefold() == name.strip().casefold():
            return learning
        return self.library.get(name)

    def add(self, adapter_id: str, config: LoraConfig) -> PeftModel:
        """Put a fresh adapter on the model, not active."""
        self.peft = peft_io.apply(self.base.model, self.peft, config, adapter_id)
        self.settle()
        return self.peft

    def ensure_loaded(self, info: AdapterInfo) -> str:
        """Load an adapter of the library if it is not on the model yet; returns its id."""
        if not self.is_loaded(info.id):
            self.require_same_base(info)
            self.load_folder(self.library.folder(info.id), info.id)
        return info.id

    def require_same_base(self, info: AdapterInfo) -> None:
        """Raise Unsupported where an adapter was made for another base than the loaded one."""
        if info.base_fingerprint != self.base.facts.fingerprint:
            raise Unsupported(
                f"{info.name!r} was made for the base {info.base_name!r}, "
                f"and {self.base.facts.name!r} is loaded.",
                cure=f"Load {info.base_name!r} to use it.",
            )

    def load_folder(self, folder: Path, adapter_id: str, *, plainly: bool = False) -> None:
        """Load an adapter folder under an id, not active; `plainly` takes PEFT's own way."""
        scanned = file_validation.scan(folder, self.layers(), name=self.name_of(adapter_id))
        peft = self.peft
        if peft is not None and not plainly and fast_load.can_place(self._adapted, scanned):
            fast_load.place(peft, self._adapted, scanned, adapter_id)
        else:
            self.peft = peft_io.load_plainly(self.base.model, peft, folder, adapter_id)
            self.settle()

    def drop(self, adapter_id: str) -> None:
        """Take an adapter off the model; the last one takes PEFT's wrapper with it.

        PEFT 0.21.2 bricks a model whose last adapter is deleted, so that case unloads instead.
        """
        if self.peft is None or adapter_id not in self.peft.peft_config:
            return
        remaining = [id for id in self.peft.peft_config if id != adapter_id]
        self._active = [(id, s) for id, s in self._active if id != adapter_id]
        self._strengths.pop(adapter_id, None)
        if remaining:
            self.activate([])
            self.peft.delete_adapter(adapter_id)
        else:
            self.peft.unload()
            self.peft = None
        self.settle()
        memory.release(self.base.device)

    def bring_back(self, active: ActiveIds) -> None:
        """Turn an earlier active set on again, as far as its adapters still are to be had."""
        there = [(id, s) for id, s in active if self.library.by_id(id) is not None]
        for adapter_id, _ in there:
            info = self.library.by_id(adapter_id)
            assert info is not None
            self.ensure_loaded(info)
        self.activate(there)
        self._active = there

    def settle(self) -> None:
        """Take stock after the model's structure or mode changed: nothing learns, all is quiet."""
        self._adapted = peft_io.adapted_layers(self.base.model)
        if self.peft is not None:
            self.peft.requires_grad_(False)
            self.peft.eval()
        self.activate(self._active)

    def resolve(self, variant: Variant) -> ActiveIds:
        """Turn display names into loaded ids; raises where one is unknown or its strength wrong."""
        if self.slot is not None:
            return self.slot.resolve(variant)
        infos = [(self.find(name), strength) for name, strength in variant]
        if len({info.id for info, _ in infos}) < len(infos):
            raise InvalidRequest("An adapter is named twice.", cure="Add its strengths up instead.")
        for info, strength in infos:
            _require_strength(info, strength)
        return [(self.ensure_loaded(info), strength) for info, strength in infos]

    def set_active(self, variant: Variant) -> None:
        """Choose which adapters answer from now on."""
        wanted = self.resolve(variant)
        self.activate(wanted)
        self._active = wanted

    @contextmanager
    def using(self, variant: Variant) -> Iterator[None]:
        """Let a variant answer for a while, then the active set again."""
        wanted = self.resolve(variant)
        with self.using_ids(wanted):
            yield

    @contextmanager
    def using_ids(self, wanted: ActiveIds) -> Iterator[None]:
        """Like `using`, by internal id."""
        if self.slot is not None:
            with self.slot.using_ids(wanted):
                yield
            return
        self.activate(wanted)
        try:
            yield
        finally:
            self.activate(self._active)

    def activate(self, wanted: ActiveIds) -> None:
        """Make the model compute with these adapters.

        An empty list runs the base alone in every layer. PEFT's outer wrapper keeps the name of
        some loaded adapter, because it looks up its configuration on each call.
        """
        if self.peft is None:
            return
        ids = [id for id, _ in wanted]
        for layer in self._adapted.values():
            layer._active_adapter = list(ids)
            layer._disable_adapters = False
        self.peft.base_model.active_adapter = list(ids)
        self.peft.active_adapter = ids[0] if ids else next(iter(self.peft.peft_config))
        self._set_strengths(dict(wanted))

    def _set_strengths(self, wanted: dict[str, float]) -> None:
        """Scale adapters to their strengths; one that is not wanted goes back to 1."""
        for id in {*self._strengths, *wanted}:
            strength = wanted.get(id, 1.0)
            if self._strengths.get(id, 1.0) != strength:
                for layer in self._adapted.values():
                    layer.set_scale(id, strength)
        self._strengths = {id: strength for id, strength in wanted.items() if strength != 1.0}

    # -- what the model says of itself -----------------------------------------------------------

    def status(self) -> tuple[list[AdapterStatus], str]:
        """Return what the model itself says of its adapters, and what is not as it should be."""
        if self.peft is None or self.slot is not None:  # PEFT's layers are off under a slot
            return [], ""
        told = self.peft.get_model_status()
        merged = told.merged_adapters if isinstance(told.merged_adapters, list) else []
        active = told.active_adapters if isinstance(told.active_adapters, list) else []
        strengths = dict(self._active)
        rows = [
            AdapterStatus(
                name=self.name_of(id),
                loaded=True,
                active=id in active,
                strength=strengths.get(id, 1.0),
                trainable=told.requires_grad.get(id) is not False,
                merged=id in merged,
                memory_bytes=sum(peft_io.bytes_in(layer, id) for layer in self._adapted.values()),
            )
            for id in told.available_adapters
        ]
        return rows, self._irregular(told)

    def _irregular(self, told: TunerModelStatus) -> str:
        """Name what differs between layers or from what this session believes, if anything."""
        parts = {
            "enabled": told.enabled,
            "active": told.active_adapters,
            "merged": told.merged_adapters,
            **{f"learning of {self.name_of(id)}": g for id, g in told.requires_grad.items()},
        }
        odd = [part for part, value in parts.items() if value == "irregular"]
        if told.active_adapters != [id for id, _ in self._active] and "active" not in odd:
            odd.append("active")
        if told.merged_adapters:
            odd.append("merged")
        return f"The adapters on the model do not agree ({', '.join(odd)})." if odd else ""


def _require_strength(info: AdapterInfo, strength: float) -> None:
    """Raise Unsupported where a strength other than 1 has no meaning.

    At scaling 0 a DoRA adapter still differs from the base: its magnitudes do not scale.
    """
    if info.strength == "on-off" and strength != 1.0:
        raise Unsupported(
            f"{info.name!r} is a {info.method} adapter: it works at strength 1 only, got "
            f"{strength:g}.",
            cure="Leave it out for the base; at strength 0 it would not be the base.",
        )
