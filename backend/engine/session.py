"""The session: one base model, its adapters, and which of them answer. Owns every change of them.

Adapters are known here by internal id. After each operation the model is in evaluation mode with
nothing trainable, whatever happened in between.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer

from backend.engine import adapters, base_model, memory
from backend.engine.control import Control
from backend.engine.slot import Slot
from backend.errors import InvalidRequest, NotFound, Unsupported
from backend.library import Library
from backend.requests import LoadModel, Variant
from backend.results import AdapterInfo, ModelFacts

ActiveIds = list[tuple[str, float]]
log = logging.getLogger(__name__)


class Session:
    """A base model with adapters; `active` holds internal ids with their strengths."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.peft: PeftModel | None = None
        self.slot: Slot | None = None
        self._base: base_model.Base | None = None
        self._active: ActiveIds = []

    @property
    def base(self) -> base_model.Base:
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
        names = {info.id: info.name for info in self.library.all()}
        return [(names.get(id, id), strength) for id, strength in self._active]

    @property
    def active_ids(self) -> ActiveIds:
        """The active adapters by internal id."""
        return list(self._active)

    def load_base(self, request: LoadModel, control: Control) -> ModelFacts:
        """Replace the base, or keep the old one where the new one cannot be loaded.

        The old one leaves before weights are read, so that both never need memory together; it
        comes back if reading fails.
        """
        plan = base_model.prepare(request, control)
        old, active = self._base.plan if self._base else None, self.active
        self.unload()
        try:
            self._base = base_model.load_prepared(plan, control)
        except Exception as error:
            if old is not None:
                log.info("The earlier base comes back: %s", error)
                self._base = base_model.load_prepared(old, control)
                self.set_active(active)
            raise
        return self._base.facts

    def unload(self) -> int:
        """Let base and adapters go; returns the bytes given back."""
        if self._base is None:
            return 0
        device = self._base.device
        before = memory.resident(device)
        self._base, self.peft, self._active = None, None, []
        memory.release(device)
        return max(before - memory.resident(device), 0)

    def release(self) -> None:
        """Give back what a broken-off operation left behind, before the next one needs it."""
        memory.release(self._base.device if self._base else torch.device("cpu"))

    # -- adapters on the model -------------------------------------------------------------------

    def layers(self) -> list[adapters.Target]:
        """Return the layers of the base that an adapter can change."""
        return adapters.linear_layers(self.base.model)

    def is_loaded(self, adapter_id: str) -> bool:
        return self.peft is not None and adapter_id in self.peft.peft_config

    def add(self, adapter_id: str, config: LoraConfig) -> PeftModel:
        """Put a fresh adapter on the model, not active."""
        self.peft = adapters.apply(self.base.model, self.peft, config, adapter_id)
        self.activate(self._active)
        return self.peft

    def ensure_loaded(self, info: AdapterInfo) -> str:
        """Load an adapter of the library if it is not on the model yet; returns its id."""
        if not self.is_loaded(info.id):
            if info.base_fingerprint != self.base.facts.fingerprint:
                raise Unsupported(
                    f"{info.name!r} was made for the base {info.base_name!r}, "
                    f"and {self.base.facts.name!r} is loaded.",
                    cure=f"Load {info.base_name!r} to use it.",
                )
            self.load_folder(self.library.folder(info.id), info.id)
        return info.id

    def load_folder(self, folder: Path, adapter_id: str) -> None:
        """Load an adapter folder under an id, not active."""
        adapters.scan(folder, self.layers())
        self.peft = adapters.load(self.base.model, self.peft, folder, adapter_id)
        self.activate(self._active)

    def drop(self, adapter_id: str) -> None:
        """Take an adapter off the model; the last one takes PEFT's wrapper with it.

        PEFT 0.21.2 bricks a model whose last adapter is deleted, so that case unloads instead.
        """
        if self.peft is None or adapter_id not in self.peft.peft_config:
            return
        remaining = [id for id in self.peft.peft_config if id != adapter_id]
        self._active = [(id, s) for id, s in self._active if id != adapter_id]
        if remaining:
            self.activate([])
            self.peft.delete_adapter(adapter_id)
            self.activate(self._active)
        else:
            self.peft.unload()
            self.peft = None
        memory.release(self.base.device)

    def resolve(self, variant: Variant) -> ActiveIds:
        """Turn display names into loaded ids; raises where one is unknown or its strength wrong."""
        if self.slot is not None:
            return self.slot.resolve(variant)
        wanted = []
        for name, strength in variant:
            adapter_id = self.ensure_loaded(self.library.get(name))
            self._check_strength(name, adapter_id, strength)
            wanted.append((adapter_id, strength))
        if len({id for id, _ in wanted}) < len(wanted):
            raise InvalidRequest("An adapter is named twice.", cure="Add its strengths up instead.")
        return wanted

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
        """Make the model compute with these adapters; nothing is trainable afterwards.

        An empty list runs the base alone in every layer. PEFT's outer wrapper keeps the name of
        some loaded adapter, because it looks up its configuration on each call.
        """
        if self.peft is None:
            return
        ids = [id for id, _ in wanted]
        known = next(iter(self.peft.peft_config))
        self.peft.base_model.set_adapter(ids, inference_mode=True)
        self.peft.active_adapter = ids[0] if ids else known
        strengths = dict(wanted)
        for layer in adapters.tuner_layers(self.peft):
            if isinstance(layer, LoraLayer):
                for id in layer.scaling:
                    layer.set_scale(id, strengths.get(id, 1.0))
        self.peft.requires_grad_(False)
        self.peft.eval()

    def _check_strength(self, name: str, adapter_id: str, strength: float) -> None:
        assert self.peft is not None
        config = self.peft.peft_config[adapter_id]
        if getattr(config, "use_dora", False) and strength != 1.0:
            raise Unsupported(
                f"{name!r} is a DoRA adapter: it works at strength 1 only, got {strength:g}.",
                cure="Leave it out for the base; DoRA at strength 0 would not be the base.",
            )
