"""Similarity of adapters: the cosine of their weight changes, from Gram matrices of the factors.

Reads library files and needs no model; a full weight change is never computed.
"""

import math

import torch

from backend.catalogue import blends
from backend.engine.core.job_control import Control
from backend.engine.methods import low_rank
from backend.engine.methods.low_rank import Factor, Source
from backend.errors import InvalidRequest, Unsupported
from backend.library import Library
from backend.results import SimilarityReport

Matrix = torch.Tensor


def compare(library: Library, names: list[str], control: Control) -> SimilarityReport:
    """Compare adapters of the library; raises where an adapter's change is not only B x A."""
    infos = [library.get(name) for name in names]
    if len({info.id for info in infos}) < len(infos):
        raise InvalidRequest("An adapter is named twice.", cure="Name each adapter once.")
    for info in infos:
        if info.by_parameter:
            raise Unsupported(
                f"{info.name!r} changes parameters of experts, which are not compared.",
                cure="Compare adapters of linear layers only.",
            )
        problem = blends.unfit(info)
        if problem is not None:
            raise Unsupported(problem.what, cure=problem.cure)
    sources = []
    for info in infos:
        control.check_stop()
        sources.append(low_rank.read(library.folder(info.id), info.name))
    return report(sources)


def report(sources: list[Source]) -> SimilarityReport:
    """Return the cosines of sources, over all layers and per layer."""
    layers = sorted({layer for source in sources for layer in source.layers}, key=_in_model_order)
    products = {
        layer: _products([source.layers.get(layer) for source in sources]) for layer in layers
    }
    size = len(sources)
    total = sum(products.values(), torch.zeros(size, size, dtype=torch.float64))
    return SimilarityReport(
        names=[source.name for source in sources],
        cosine=_cosines(total),
        per_layer={layer: _cosines(product) for layer, product in products.items()},
    )


def _in_model_order(layer: str) -> list[tuple[int, str]]:
    """Sort layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in layer.split(".")]


def _products(parts: list[Factor | None]) -> Matrix:
    """Return the Frobenius products of all pairs for one layer; 0 for an unchanged layer."""
    found = [(number, part) for number, part in enumerate(parts) if part is not None]
    a = torch.cat([part.a.double() * part.scaling for _, part in found])
    b = torch.cat([part.b.double() for _, part in found], dim=1)
    grams = (b.T @ b) * (a @ a.T)
    member = torch.zeros(len(parts), len(a), dtype=torch.float64)
    start = 0
    for number, part in found:
        member[number, start : start + part.rank] = 1
        start += part.rank
    return member @ grams @ member.T


def _cosines(products: Matrix) -> list[list[float]]:
    """Divide products by norms; an adapter that changes nothing has the cosine 0 with all."""
    squares = products.diagonal().clamp_min(0).tolist()
    norms = [math.sqrt(square) for square in squares]
    return [
        [
            max(-1.0, min(1.0, float(products[i, j]) / (norms[i] * norms[j])))
            if norms[i] > 0 and norms[j] > 0
            else 0.0
            for j in range(len(norms))
        ]
        for i in range(len(norms))
    ]
