"""Sampling the next token, one row at a time."""

import torch

NEXT_TOKEN = "The score of the next token"


class Sampler:
    """One row's chance: with temperature, the likeliest token after adding noise of its own.

    The likeliest token after adding Gumbel noise is a sample of the softmax (Gumbel-max trick), and
    the noise comes from the row's seed alone: an answer is the same alone and in company.
    """

    def __init__(self, temperature: float, seed: int) -> None:
        self.temperature = temperature
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, size: int) -> torch.Tensor | None:
        """Return the noise of the next token; None where there is no chance in it."""
        if self.temperature == 0:
            return None
        return -(-torch.rand(size, generator=self._generator).clamp_(1e-20).log()).log()

    def apply(self, scores: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """Return the scores of which the largest is taken."""
        if noise is None:
            return scores
        return scores / self.temperature + noise.to(scores.device)
