"""Sampling of the next token, one row at a time. Knows nothing of models or tokens."""

import torch

NEXT_TOKEN = "The score of the next token"


class Sampler:
    """Samples one row: with a temperature, the largest score after adding Gumbel noise.

    That is a sample from the softmax (Gumbel-max trick, Maddison et al. 2014). The noise
    depends on the row's seed only, so an answer is the same alone and in a batch.
    """

    def __init__(self, temperature: float, seed: int) -> None:
        self.temperature = temperature
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, size: int) -> torch.Tensor | None:
        """Return the next token's Gumbel noise, (size,), fp32; None for greedy decoding."""
        if self.temperature == 0:
            return None
        return -(-torch.rand(size, generator=self._generator).clamp_(1e-20).log()).log()

    def apply(self, scores: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """Return the scores whose largest is chosen; scores, noise: (vocabulary,), float."""
        if noise is None:
            return scores
        return scores / self.temperature + noise.to(scores.device)
