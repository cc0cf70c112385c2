"""How a base's answers are computed: in batches, one by one, or without a cache. Found by trying.

What a model's `forward` takes says little about whether it is right with padding, or with a cache
that our own loop holds. So two short prompts are computed in each way and compared with whole
forward passes, once for each loaded base. Whether a base can be computed from its weights
(`direct_model`) is found in the same way.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from weakref import WeakKeyDictionary

import torch

from backend.engine.core import devices
from backend.engine.inference import batched_decoding, generate
from backend.engine.inference.direct_model import FEW, DirectModel, NotDirect, Segment
from backend.engine.inference.prompts import end_tokens
from backend.engine.inference.rows import MARGIN
from backend.engine.models.loading import Base

PROMPTS = ("Hello! How are you today?", "The cat")
"""Of different lengths, so that one of them is padded in a batch."""


HALF_MEAN = 5e-2
"""How much scores may differ on average in half precision or quantised, relative to the largest.

Rounding may send a token to another expert there, which moves single scores by more; those of a
wrong cache or mask are unrelated, and differ by several times as much.
"""


LONGER = "The cat sat by the window, and nobody knew where the fox of last winter had gone. " * 2
DIRECT_MEAN = 1.5e-2
"""The same for a base that is computed from its weights: a part that computes in another way, such
as positions left out in some layers, must not pass for rounding. Rounding gives 0.5 %."""


class Way(Enum):
    """How answers are computed by a model's own modules, the fastest first."""

    BATCH = "several rows in one batch, with a standard cache"
    ALONE = "one row after the other, with a standard cache"
    OWN_CACHE = "one row after the other, with the model's own cache"
    WHOLE = "one row after the other, the whole text again for each token"


def of(base: Base) -> Way:
    """Return the fastest way that is right for a base, which is tried at the first call."""
    found = _FOUND.get(base.model)
    if found is None:
        found = _FOUND[base.model] = _first_right(base)
    return found


def in_turn(base: Base) -> None:
    """Answer a base's rows one by one from now on: it does not allow an adapter for each row."""
    _FOUND[base.model] = Way.ALONE


_FOUND: WeakKeyDictionary[torch.nn.Module, Way] = WeakKeyDictionary()


def direct(base: Base) -> DirectModel | None:
    """Return a base as it is computed from its weights; None where that is not right.

    It is tried at the first call, for which no adapter may be active.
    """
    found = _DIRECT.get(base.model)
    if found is False:
        return None
    try:
        model = DirectModel(base)
    except (NotDirect, AttributeError):
        _DIRECT[base.model] = False
        return None
    if found is None:
        found = _DIRECT[base.model] = _tried(model, _right_directly)
    return model if found else None


def is_exact(model: DirectModel) -> bool:
    """Tell whether a batch changes no bit of its rows, which is tried at the first call."""
    key = model.base.model
    if key not in _EXACT:
        _EXACT[key] = _tried(model, lambda model: _exact_layers(model) and _exact_rows(model))
    return _EXACT[key]


# Only verdicts: a model that its own entry held would never be freed.
_DIRECT: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()
_EXACT: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


def _tried(model: DirectModel, is_right: Callable[[DirectModel], bool]) -> bool:
    base = model.base
    with torch.inference_mode(), devices.same_random_numbers(base.device), _quiet(base.model):
        try:
            return is_right(model)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # see `_first_right`
            return False


def _right_directly(model: DirectModel) -> bool:
    """Tell whether a prompt, and a token after it, score as in whole forward passes."""
    whole = _Whole(model.base)
    ids: list[int] = model.base.tokenizer(LONGER).input_ids or [0]
    limits = (model.longest, model.base.facts.context_length)
    ids = ids[: min(each or len(ids) + 1 for each in limits) - 1]
    cache = model.cache(len(ids) + 1)
    scores = model.scores([Segment(cache, {}, ids)])
    if not whole.agrees(scores, [ids], DIRECT_MEAN):
        return False
    longer = whole.longer(ids)
    scores = model.scores([Segment(cache, {}, longer[-1:])])
    return whole.agrees(scores, [longer], DIRECT_MEAN)


def _exact_layers(model: DirectModel) -> bool:
    """Tell whether one layer of each shape computes rows as it does alone."""
    least, seen = model.least_rows(), set()
    for each in model.linears:
        if (shape := (type(each.module), *each.size)) in seen:
            continue
        seen.add(shape)
        rows = torch.randn(FEW, each.size[1], device=model.base.device).to(model.base.dtype)
        for count in (2, 3, FEW):
            together = each.base(rows[: max(count, least)])
            for index in range(count):
                alone = each.base(rows[index : index + 1].expand(least, -1).contiguous())
                if not torch.equal(together[index], alone[0]):
                    return False
    return True


def _exact_rows(model: DirectModel) -> bool:
    """Tell whether the whole model scores three rows as it scores each alone."""
    texts = [_Whole(model.base).prompts[number] for number in (0, 1, 0)]
    caches = [model.cache(len(text) + 1) for text in texts]
    alone = []
    for text, cache in zip(texts, caches, strict=True):
        model.scores([Segment(cache, {}, text)])
        alone.append(model.scores([Segment(cache, {}, text[:1])])[0])
        cache.crop(len(text))
    pairs = zip(texts, caches, strict=True)
    together = model.scores([Segment(cache, {}, text[:1]) for text, cache in pairs])
    return torch.equal(together, torch.stack(alone))


def _first_right(base: Base) -> Way:
    tries: list[tuple[Way, Callable[[_Whole], bool]]] = []
    if batched_decoding.can_batch(base.model):
        tries = [(Way.BATCH, _right_together), (Way.ALONE, _right_alone)]
    tries.append((Way.OWN_CACHE, _right_in_generate))
    whole = _Whole(base)
    with torch.inference_mode(), devices.same_random_numbers(base.device), _quiet(base.model):
        for way, is_right in tries:
            try:
                if is_right(whole):
                    return way
            except torch.OutOfMemoryError:
                raise
            except Exception:  # whatever an architecture raises here, it cannot be used so
                continue
    return Way.WHOLE


class _Whole:
    """Whole forward passes of a base, each of which is computed once."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self.prompts = [base.tokenizer(text).input_ids or [0] for text in PROMPTS]
        self._ends = set(end_tokens(base))
        self._known: dict[tuple[int, ...], torch.Tensor] = {}

    def scores(self, ids: list[int]) -> torch.Tensor:
        """Return the scores of the token after a text, (vocabulary,), float32."""
        key = tuple(ids)
        if key not in self._known:
            self._known[key] = generate.whole_scores(self.base, ids)
        return self._known[key]

    def longer(self, ids: list[int]) -> list[int]:
        """Return a text with its likeliest next token that does not end it."""
        likeliest = self.scores(ids).topk(len(self._ends) + 1).indices.tolist()
        return [*ids, next(token for token in likeliest if token not in self._ends)]

    def agrees(self, scores: torch.Tensor, texts: list[list[int]], mean: float = HALF_MEAN) -> bool:
        """Tell whether scores, (rows, vocabulary), are those of the texts, rounding aside."""
        expected = torch.stack([self.scores(ids) for ids in texts])
        difference = (scores.float() - expected).abs()
        size = expected.abs().amax(dim=-1).clamp(min=1.0)
        if self.base.dtype == torch.float32 and self.base.facts.quantization == "none":
            return bool((difference.amax(dim=-1) <= MARGIN * size).all())
        return bool((difference.mean(dim=-1) <= mean * size).all())


def _right_together(whole: _Whole) -> bool:
    """Tell whether a padded batch scores like its rows alone: prompts, a token, then one row."""
    texts = whole.prompts
    step = batched_decoding.first_step(whole.base, texts)
    if not whole.agrees(batched_decoding.forward(whole.base, step), texts):
        return False
    texts = [whole.longer(ids) for ids in texts]
    step.advance([ids[-1] for ids in texts])
    if not whole.agrees(batched_decoding.forward(whole.base, step), texts):
        return False
    step.keep([1], None)
    last = whole.longer(texts[1])
    step.advance(last[-1:])
    return whole.agrees(batched_decoding.forward(whole.base, step), [last])


def _right_alone(whole: _Whole) -> bool:
    """Tell whether a prompt and two tokens after it score with a cache as without one."""
    ids = whole.prompts[0]
    step = batched_decoding.first_step(whole.base, [ids])
    for _ in range(2):
        if not whole.agrees(batched_decoding.forward(whole.base, step), [ids]):
            return False
        ids = whole.longer(ids)
        step.advance(ids[-1:])
    return whole.agrees(batched_decoding.forward(whole.base, step), [ids])


def _right_in_generate(whole: _Whole) -> bool:
    """Tell whether the scores of `generate`, with the model's own cache, are those without one."""
    first = whole.prompts[0]
    ids = torch.tensor([first], device=whole.base.device)
    scores, tokens = generate.scored_plainly(whole.base, ids, 3)
    texts = [[*first, *tokens[:number]] for number in range(len(tokens))]
    return bool(tokens) and whole.agrees(torch.cat(scores), texts)


@contextmanager
def _quiet(model: torch.nn.Module) -> Iterator[None]:
    """Compute as for an answer, whatever the mode is now."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
