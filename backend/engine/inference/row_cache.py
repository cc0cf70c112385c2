"""Keys and values of one row, all layers in one tensor that grows in blocks."""

import torch

BLOCK = 256
"""Tokens that a full cache grows by at least: each growth copies what is there."""


class RowCache:
    """The keys and values of `tokens`, (layers, 2, heads, capacity, head_dim), the model's dtype.

    A row has a cache of its own, so no row is padded, and none sees the length of another.
    """

    def __init__(
        self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, room: int
    ) -> None:
        """Make room for so many tokens; shape: (layers, heads, head_dim)."""
        layers, heads, head_dim = shape
        self._held = torch.empty(layers, 2, heads, room, head_dim, dtype=dtype, device=device)
        self._layers = self._held.unbind()
        self.tokens: list[int] = []

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def dtype(self) -> torch.dtype:
        return self._held.dtype

    @property
    def device(self) -> torch.device:
        return self._held.device

    @property
    def nbytes(self) -> int:
        return int(self._held.nbytes)

    def reserve(self, count: int) -> None:
        """Make room for so many more tokens."""
        needed, room = len(self) + count, self._held.shape[3]
        if needed > room:
            layers, two, heads, _, head_dim = self._held.shape
            wanted = max(needed, room + max(BLOCK, room // 4))
            grown = self._held.new_empty(layers, two, heads, wanted, head_dim)
            grown[..., : len(self), :] = self._held[..., : len(self), :]
            self._held, self._layers = grown, grown.unbind()

    def put(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the next tokens of a layer; return all of its keys and values with them.

        keys, values: (tokens, heads, head_dim). Returns (heads, all tokens, head_dim) twice. They
        count only once `extend` names them, so a pass that fails leaves the cache as it was.
        """
        start, count = len(self), len(keys)
        all_keys, all_values = self._layers[layer].narrow(2, 0, start + count).unbind()
        all_keys.narrow(1, start, count).copy_(keys.transpose(0, 1))
        all_values.narrow(1, start, count).copy_(values.transpose(0, 1))
        return all_keys, all_values

    def extend(self, tokens: list[int]) -> None:
        """Name the tokens that every layer has written."""
        self.tokens.extend(tokens)

    def crop(self, length: int) -> None:
        """Keep only the first tokens."""
        del self.tokens[length:]

    def trim(self) -> None:
        """Free the room beyond the tokens."""
        self._held = self._held[..., : len(self), :].clone()
        self._layers = self._held.unbind()
