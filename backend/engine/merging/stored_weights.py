"""A base's weight files as the parameters of its model: under which key each one is stored.

Proves that the files hold the loaded model, without loading it. Knows nothing of adapters.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch

from backend.engine.merging.safetensors_io import DTYPES, read, read_samples
from backend.engine.models import checkpoint_names, model_folder
from backend.engine.models.checkpoint_names import Conversion
from backend.files import safetensors_header
from backend.files.safetensors_header import FLOATS


class StoredWeights:
    """The tensors of a base's files by key, and the parameters that they make."""

    def __init__(self, folder: Path) -> None:
        self.stored = {tensor.key: tensor for tensor in safetensors_header.tensors(folder)}
        self._model = model_folder.skeleton(folder)
        self.parameters = {name: tuple(p.shape) for name, p in self._model.named_parameters()}
        self.names = checkpoint_names.read_names(self._model, self.stored)
        self._keys = self._tied_included()

    def key_of(self, parameter: str) -> str | None:
        """Return the key under which a parameter is stored unchanged; None where it is not."""
        return self._keys.get(parameter)

    def build(
        self, conversion: Conversion, given: dict[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """Return the parameters that a group of tensors makes, read from the files or given."""
        return conversion.build(
            self._model,
            lambda key: given[key] if given is not None else read(self.stored[key]),
        )

    def are_plain(self) -> bool:
        """Tell whether the files hold every parameter as numbers of its own shape, or its parts."""
        return not self._stored_otherwise()

    def _stored_otherwise(self) -> str:
        """Return which parameter the files do not hold as it is; empty where they hold all."""
        made = self._shapes_of_made()
        for name, shape in self.parameters.items():
            key = self.key_of(name)
            if key is None and made.get(name) != shape:
                return f"its files do not contain {name} under a known name"
            stored = self.stored[key] if key is not None else None
            if stored is not None and (stored.shape != shape or stored.dtype not in FLOATS):
                return f"its files contain {name} in another shape"
        return ""

    def obstacle(self, fingerprint: str, dtype: torch.dtype) -> str:
        """Return why the files are not those of a loaded model; empty where they are.

        Equal names, shapes and fingerprint prove that they are. `dtype` is the session's.
        """
        if other := self._stored_otherwise():
            return other
        unknown = [t.dtype for t in self.stored.values() if t.dtype not in DTYPES]
        if unknown:
            return f"its files contain numbers of the type {unknown[0]}"
        if self._fingerprint(dtype) != fingerprint:
            return "its files contain other numbers than the loaded model"
        return ""

    def _tied_included(self) -> dict[str, str]:
        """Return the key of each parameter; tied ones may be stored under either name."""
        keys = dict(self.names.keys)
        first: dict[int, str] = {}
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            main = first.setdefault(id(parameter), name)
            if main not in keys and name in keys:
                keys[main] = keys[name]
        return keys

    def _shapes_of_made(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of parameters that Transformers makes of others, without reading one.

        Empty where a group cannot be computed like this.
        """
        made: dict[str, torch.Tensor] = {}
        try:
            for conversion in self.names.conversions:
                made |= conversion.build(self._model, self._without_values)
        except (RuntimeError, ValueError, KeyError, NotImplementedError):
            return {}
        return {name: tuple(tensor.shape) for name, tensor in made.items()}

    def _without_values(self, key: str) -> torch.Tensor:
        return torch.empty(self.stored[key].shape, device="meta")

    def _fingerprint(self, dtype: torch.dtype) -> str:
        """Hash the files in the same way as `fingerprint.fingerprint` hashes the loaded model."""
        samples = dict(self._samples(dtype))
        digest = hashlib.sha256()
        for name, shape in sorted(self.parameters.items()):
            digest.update(f"{name}{shape}".encode())
            sample = samples[name].to(dtype).to(torch.bfloat16)
            digest.update(sample.view(torch.int16).numpy().tobytes())
        return digest.hexdigest()[:16]

    def _samples(self, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the numbers of each parameter that its fingerprint covers, (samples,)."""
        for name in self.parameters:
            if (key := self.key_of(name)) is not None:
                stored = self.stored[key]
                yield name, read_samples(stored, max(1, stored.numel // 64))
        for conversion in self.names.conversions:
            for name, tensor in self.build(conversion).items():
                yield name, tensor.reshape(-1)[:: max(1, tensor.numel() // 64)].clone()
