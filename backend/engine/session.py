"""The session: one base model, its adapters, and which of them are active. Owns every change.

Adapters are identified by internal id here. After each operation the model is in evaluation mode
with nothing trainable, whatever happened in between. Knows nothing of runs or of the page.

Switching writes the active list and the scalings of each adapted layer directly: PEFT's own
`set_adapter` also walks through every module and parameter, which takes longer than a token.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer

from backend.engine.core import memory
from backend.engine.core.job_control import Control
from backend.engine.methods import (
    coexistence,
    fast_load,
    file_validation,
    model_status,
    peft_io,
    scaling,
)
from backend.engine.methods.adaptable import adaptable, has_experts
from backend.engine.models import loading
from backend.engine.models.linear_layers import Target
from backend.errors import InvalidRequest, NotFound, Unsupported
from backend.library import Library
from backend.requests import LoadModel, Variant
from backend.results import AdapterInfo, AdapterStatus, ModelFacts

ActiveIds = list[tuple[str, float]]
log = logging.getLogger(__name__)


class AdapterSlot(Protocol):
    """What the session knows of a prepared hot-swap slot, which then chooses the adapter."""

    @property
    def active(self) -> Variant: ...

    def resolve(self, variant: Variant) -> ActiveIds: ...

    def using_ids(self, wanted: ActiveIds) -> AbstractContextManager[None]: ...


class Session:
    """A base model with adapters; `active` holds internal ids with their strengths."""

    def __init__(self, library: Library, models_dir: Path | None = None) -> None:
        self.library = library
        self.models_dir = models_dir
        self.peft: PeftModel | None = None
        self.slot: AdapterSlot | None = None
        self.learning: AdapterInfo | None = None
        """The adapter of a paused run, which is not in the library yet."""
        self.held_by_earlier_runs: dict[str, int] = {}
        """Bytes still held from earlier runs on this base, by the precision of their steps."""
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
        """The module that computes answers: the base, wrapped by PEFT once it has adapters."""
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

        The old base is unloaded before the new weights are read, so both never need memory at the
        same time. It is loaded again if reading fails.
        """
        plan = loading.prepare(request, control, self.models_dir)
        old, active = self._base.plan if self._base else None, self.active
        self.unload()
        try:
            self._base = _read(plan, control)
            self.layers()  # in the order that PEFT finds in a fresh model
        except Exception as error:
            if old is not None:
                log.info("The earlier base is loaded again: %s", error)
                self._base = _read(old, control)
                self.set_active(active)
            raise
        return self._base.facts

    def unload(self) -> int:
        """Unload base and adapters; return the bytes that became free."""
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
        """Free what an interrupted operation left behind, before the next one needs the memory."""
        memory.release(self._base.device if self._base else torch.device("cpu"))

    # -- adapters on the model -------------------------------------------------------------------

    def new_id(self) -> str:
        """Return an unused id: PEFT 0.21.2 would load an adapter into another one of its name."""
        return self.library.new_id(self.peft.peft_config if self.peft is not None else ())

    def layers(self) -> list[Target]:
        """Return what of the base an adapter can change, with or without adapters on it."""
        if self._targets is None:
            self._targets = adaptable(self.base.model)
        return self._targets

    def adapted(self) -> dict[str, LoraLayer]:
        """Return the layers that hold adapters now, by the base's module names."""
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

    def was_made_here(self, adapter_id: str) -> bool:
        """Tell whether the workbench trained or made an adapter, rather than someone else."""
        info = self.library.by_id(adapter_id)
        return info is None or info.origin != "added"

    def find(self, name: str) -> AdapterInfo:
        """Return an adapter by its display name, also a half-trained one; raises NotFound."""
        learning = self.learning
        if learning is not None and learning.name.casefold() == name.strip().casefold():
            return learning
        return self.library.get(name)

    def add(self, adapter_id: str, config: LoraConfig) -> PeftModel:
        """Add a new adapter to the model, not active; raises ModelError where PEFT misplaces it.

        Adapters that PEFT cannot keep beside it are unloaded (`keeping_active` brings them back).
        """
        self._make_room(config)
        self.peft = peft_io.apply(self.base.model, self.peft, config, adapter_id)
        self._settle_new(adapter_id, config)
        return self.peft

    def _settle_new(self, adapter_id: str, config: LoraConfig) -> None:
        self.settle()
        try:
            coexistence.require_placed(self._adapted, config, self.layers(), adapter_id)
        except BaseException:
            self.drop(adapter_id)
            raise

    def ensure_loaded(self, info: AdapterInfo) -> str:
        """Load an adapter of the library if it is not on the model yet; return its id."""
        if not self.is_loaded(info.id):
            self.require_same_base(info)
            self.load_folder(self.library.folder(info.id), info.id)
        return info.id

    def require_same_base(self, info: AdapterInfo) -> None:
        """Raise Unsupported where an adapter was made for a different base."""
        if info.base_fingerprint != self.base.facts.fingerprint:
            raise Unsupported(
                f"{info.name!r} was made for the base {info.base_name!r}, "
                f"but {self.base.facts.name!r} is loaded.",
                cure=f"Load {info.base_name!r} to use it.",
            )

    def load_folder(self, folder: Path, adapter_id: str, *, plainly: bool = False) -> None:
        """Load an adapter folder under an id, not active; `plainly` loads it with PEFT's code."""
        scanned = file_validation.scan(folder, self.layers(), name=self.name_of(adapter_id))
        self._make_room(scanned.config)
        peft = self.peft
        if peft is not None and not plainly and fast_load.can_place(self._adapted, scanned):
            fast_load.place(peft, self._adapted, scanned, adapter_id)
        else:
            self.peft = peft_io.load_plainly(self.base.model, peft, folder, adapter_id)
            self._settle_new(adapter_id, scanned.config)

    def _odd_beside(self, config: LoraConfig) -> list[str]:
        """Return the adapters on the model that PEFT cannot keep there beside another one."""
        there = self.peft.peft_config if self.peft is not None else {}
        return coexistence.odd_beside(config, there, self.layers())

    def _make_room(self, config: LoraConfig) -> None:
        """Unload the adapters that PEFT cannot keep on the model beside a new one."""
        odd = self._odd_beside(config)
        if self.learning is not None and self.learning.id in odd:
            raise Unsupported(
                f"PEFT cannot keep another adapter beside {self.learning.name!r}, which is being "
                "trained: they change different parameters.",
                cure="Wait until that run has ended.",
            )
        for id in odd:
            self.drop(id)
        if config.target_parameters:
            coexistence.tidy(self.base.model, self.layers())

    def drop(self, adapter_id: str) -> None:
        """Unload an adapter from the model; with the last one PEFT's wrapper is removed, too.

        PEFT 0.21.2 leaves a model unusable when its last adapter is deleted, so that case calls
        `unload` instead.
        """
        if self.peft is None or adapter_id not in self.peft.peft_config:
            return
        remaining = [id for id in self.peft.peft_config if id != adapter_id]
        self._active = [(id, s) for id, s in self._active if id != adapter_id]
        self._strengths.pop(adapter_id, None)
        parameters = self.peft.peft_config[adapter_id].target_parameters
        if remaining:
            self.activate([])
            self.peft.delete_adapter(adapter_id)
            if parameters:
                coexistence.strip_empty(self.base.model)
        else:
            self.peft.unload()
            self.peft = None
        self.settle()
        memory.release(self.base.device)

    def bring_back(self, active: ActiveIds) -> None:
        """Activate an earlier set again, as far as its adapters still exist."""
        there = [(id, s) for id, s in active if self.library.by_id(id) is not None]
        for adapter_id, _ in there:
            info = self.library.by_id(adapter_id)
            assert info is not None
            self.ensure_loaded(info)
        self.activate(there)
        self._active = there

    def settle(self) -> None:
        """Restore the resting state after a change: evaluation mode, nothing trainable."""
        self._adapted = peft_io.adapted_layers(self.base.model)
        if self.peft is not None:
            self.peft.requires_grad_(False)
            self.peft.eval()
        self.activate(self._active)

    def resolve(self, variant: Variant) -> ActiveIds:
        """Turn display names into ids; raises on unknown names or strengths.

        They are loaded, as far as PEFT can keep them beside the adapters on the model; `using_ids`
        and `set_active` exchange the others.
        """
        if self.slot is not None:
            return self.slot.resolve(variant)
        infos = [(self.find(name), strength) for name, strength in variant]
        if len({info.id for info, _ in infos}) < len(infos):
            raise InvalidRequest(
                "An adapter is named twice.", cure="Name it once, with the summed strength."
            )
        for info, strength in infos:
            scaling.require_strength(info, strength)
        configs = {info.name: self._config_of(info) for info, _ in infos}
        coexistence.require_together(configs, self.layers())
        for info, _ in infos:
            self.require_same_base(info)
            if not self.is_loaded(info.id) and not self._odd_beside(configs[info.name]):
                self.ensure_loaded(info)
        return [(info.id, strength) for info, strength in infos]

    def _config_of(self, info: AdapterInfo) -> LoraConfig:
        if self.peft is not None and info.id in self.peft.peft_config:
            config: LoraConfig = self.peft.peft_config[info.id]
            return config
        self.require_same_base(info)
        return peft_io.read_config(self.library.folder(info.id))

    def _load(self, wanted: ActiveIds) -> None:
        """Load those of these adapters that are not on the model; raises NotFound."""
        for id, _ in wanted:
            if not self.is_loaded(id):
                info = self.library.by_id(id)
                if info is None:
                    raise NotFound("This adapter is no longer in the library.")
                self.ensure_loaded(info)

    @contextmanager
    def keeping_active(self) -> Iterator[None]:
        """Let something load other adapters, then restore the active set."""
        active = list(self._active)
        try:
            yield
        finally:
            if self._active != active:
                self.bring_back(active)

    def set_active(self, variant: Variant) -> None:
        """Choose the active adapters from now on."""
        wanted, active = self.resolve(variant), list(self._active)
        try:
            self._load(wanted)
        except BaseException:
            self.bring_back(active)
            raise
        self.activate(wanted)
        self._active = wanted

    @contextmanager
    def using(self, variant: Variant) -> Iterator[None]:
        """Activate a variant for a while, then restore the active set."""
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
        with self.keeping_active():
            self._load(wanted)
            self.activate(wanted)
            try:
                yield
            finally:
                self.activate(self._active)

    def activate(self, wanted: ActiveIds) -> None:
        """Make the model compute with these adapters.

        With an empty list every layer computes as the base alone. PEFT's outer wrapper keeps the
        name of some loaded adapter, because it looks up that adapter's configuration on each call.
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
        """Scale adapters to their strengths; all other adapters go back to strength 1."""
        for id in {*self._strengths, *wanted}:
            strength = wanted.get(id, 1.0)
            if self._strengths.get(id, 1.0) != strength:
                for layer in self._adapted.values():
                    layer.set_scale(id, strength)
        self._strengths = {id: strength for id, strength in wanted.items() if strength != 1.0}

    # -- the state of the model ------------------------------------------------------------------

    def status(self) -> tuple[list[AdapterStatus], str]:
        """Return the adapters' status as read from the model, and what is wrong with it, if any."""
        if self.peft is None or self.slot is not None:  # PEFT's layers are off under a slot
            return [], ""
        return model_status.read(self.peft, self._adapted, self._active, self.name_of)


def _read(plan: loading.Plan, control: Control) -> loading.Base:
    """Load a base, and say whether it has experts that adapters can train."""
    base = loading.load_prepared(plan, control)
    found = has_experts(adaptable(base.model))
    return replace(base, facts=base.facts.model_copy(update={"has_experts": found}))
