"""Tokenisation: documents become token ids with a loss mask.

The tokens of a table depend only on its content, its columns and the base, so they are computed
once and kept (`token_cache`). Cutting and splitting, which a run's settings change, are then cheap.
Knows nothing of packs or training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from backend.engine.core.job_control import Control
from backend.engine.data import dataset
from backend.engine.data.dataset import DataSet, Keys, Part, Problems, refuse, split
from backend.engine.data.encoding import encode, encode_part
from backend.engine.data.statistics import stats_of
from backend.engine.data.token_arrays import Documents, Encoded, Ints, Tokens, in_pieces, join
from backend.engine.data.token_cache import TokenStore
from backend.engine.hub_data import description
from backend.errors import DataError
from backend.requests import Train
from backend.results import DataStats

__all__ = ["Corpus", "Documents", "Prepared", "Tokens", "encode", "prepare", "tokenise"]

USUAL_PIECE = 512
"""The length in tokens by which a split text is judged before a length is chosen."""


class Limits(NamedTuple):
    """What limits the length of an example, in tokens: two settings and the base; 0 is no limit."""

    longest: int
    batch: int = 0
    context: int = 0

    def explain(self, needed: int) -> tuple[str, str]:
        """Return which limit cuts examples, and how an example of `needed` tokens would fit."""
        if self.context and self.context <= min(self.longest, self.batch or self.longest):
            return ", all that the base reads at once", "shorten the prompts, or load another base"
        room = min(needed, self.context or needed)
        small = ["the longest example"] * (self.longest < room)
        small += ["the tokens per batch"] * (0 < self.batch < room)
        cut_by_batch = 0 < self.batch < self.longest
        cause = ", as many as a batch has" if cut_by_batch else ", the longest example allowed"
        return cause, f"raise {' and '.join(small)} to {room:,} tokens"


@dataclass
class Corpus:
    """A data set as the model sees it: training and held-out documents, and statistics.

    `lengths` are those of all training examples before they are cut: (examples,) int64, in tokens.
    `keys` name the contents of all usable rows: of the data, and of its separate held-out data.
    """

    train: Documents
    held_out: Documents
    stats: DataStats
    lengths: Ints
    keys: tuple[Keys, Keys]


@dataclass
class Prepared:
    """The tables of a data set, tokenised and not cut: independent of a run's settings."""

    main: Encoded
    apart: Encoded
    bos: int | None = None
    """The token with which a text begins, if the base has one."""

    @property
    def rows(self) -> int:
        return self.main.rows + self.apart.rows

    @property
    def problems(self) -> Problems:
        both = Problems()
        both.extend(self.main.problems)
        both.extend(self.apart.problems)
        return both


def of_run(
    train: Train,
    tokenizer: Any,
    *,
    context: int,
    store: TokenStore | None,
    control: Control | None = None,
    unfilled: bool = False,
) -> Corpus:
    """Tokenise the data of a run; `context` is the base's context length in tokens, 0 unlimited.

    Raises DataError as `tokenise`, and unless `unfilled`, where placeholders would be learned. A
    data set of the Hub that is not on this machine is downloaded first.
    """
    description.fetch_all([train.data, train.held_out], control)
    longest = min(train.longest, context) if context else train.longest
    corpus = tokenise(
        dataset.of_run(train), tokenizer, max_length=longest, store=store, control=control,
        limits=Limits(train.max_length, train.tokens_per_step, context),
    )  # fmt: skip
    if not unfilled:
        require_filled(train, corpus.stats)
    return corpus


def tokenise(
    data: DataSet,
    tokenizer: Any,
    *,
    max_length: int,
    store: TokenStore | None = None,
    control: Control | None = None,
    limits: Limits | None = None,
) -> Corpus:
    """Tokenise a data set; raises DataError where rows are bad or no example is left.

    `limits` are those that `max_length` follows from, for the error.
    """
    prepared = prepare(data, tokenizer, store=store, control=control)
    if not data.drop_bad_rows:
        _refuse(prepared)
    return assemble(data, prepared, max_length=max_length, limits=limits)


def prepare(
    data: DataSet,
    tokenizer: Any,
    *,
    store: TokenStore | None = None,
    control: Control | None = None,
) -> Prepared:
    """Tokenise all tables of a data set, or read them from the store."""

    def encoded(parts: Sequence[Part]) -> Encoded:
        return join([_encoded(part, tokenizer, store, control) for part in parts])

    main, apart = encoded(data.parts), encoded(data.held_out_parts)
    return Prepared(main, apart, tokenizer.bos_token_id)


def assemble(
    data: DataSet, prepared: Prepared, *, max_length: int, limits: Limits | None = None
) -> Corpus:
    """Hold out examples and fit them to the length; raises DataError where none is left."""
    main, apart = prepared.main, prepared.apart
    if data.splits:
        main, apart = (in_pieces(each, max_length, prepared.bos) for each in (main, apart))
    learned, held_out = split(main.keys, data, apart.keys)
    stats = stats_of(
        data, main, apart, whole=(prepared.main, prepared.apart), learned=learned,
        longest=max_length,
    )  # fmt: skip
    usable = main.learned_within(max_length) > 0
    train = Documents(main, learned[usable[learned]], max_length)
    if data.held_out_parts:
        kept = Documents(apart, np.flatnonzero(apart.learned_within(max_length) > 0), max_length)
    else:
        kept = Documents(main, held_out[usable[held_out]], max_length)
    if not train:
        if main.refusal and not len(main):
            _refuse(prepared)
        raise _nothing(main, prepared.rows, max_length, limits or Limits(max_length))
    whole = main.lengths[learned][~main.blank[learned]]
    if data.splits:  # independent of the settings, as the lengths of whole examples are
        usual = in_pieces(prepared.main, USUAL_PIECE, prepared.bos)
        whole = usual.lengths[~usual.blank]
    stats = stats.model_copy(update=_sizes(train, kept))
    return Corpus(train, kept, stats, whole, (main.keys, apart.keys))


def _encoded(
    part: Part, tokenizer: Any, store: TokenStore | None, control: Control | None
) -> Encoded:
    if store is None:
        return encode_part(part, tokenizer, control)
    return store.get_or_make(part, tokenizer, lambda: encode_part(part, tokenizer, control))


# -- errors and sizes ----------------------------------------------------------------------------


def _refuse(prepared: Prepared) -> None:
    """Raise DataError where rows cannot be used, also where the template can render no row."""
    problems = prepared.problems
    refusals = [each.refusal for each in (prepared.main, prepared.apart) if each.refusal]
    if refusals and not len(prepared.main):
        raise DataError(refusals[0][0], cure=refusals[0][1])
    refuse(problems, prepared.rows)


def require_filled(train: Train, stats: DataStats) -> None:
    """Raise DataError where placeholders would be learned as they stand."""
    if not stats.placeholders or train.keeps_placeholders:
        return
    first = stats.placeholders[0].name
    listed = ", ".join(f"{{{{{each.name}}}}} in {each.rows:,} rows" for each in stats.placeholders)
    raise DataError(
        f"The data has placeholders without a text: {listed}.",
        cure=f"Write a text for each under Placeholders, such as {first} = Ada. To train on them "
        "as they stand, write the line: keep all.",
    )


def _nothing(main: Encoded, rows: int, max_length: int, limits: Limits) -> DataError:
    """Return why no example is left, with the setting that cuts the examples."""
    if main.learned_within(max_length).any():
        return DataError(
            "Every example is held out, so none is left for training.",
            cure="Choose other held-out data.",
        )
    none = f"None of the {rows:,} examples has a token with loss"
    answered = main.learned_within(int(main.lengths.max(initial=0))) > 0
    if not answered.any():
        return DataError(f"{none}: the answers are empty.", cure="Add answers to the examples.")
    cause, cure = limits.explain(int(main.lengths[answered].max()))
    empty = "are empty or " if not answered.all() else ""
    return DataError(
        f"{none}: the answers {empty}start after the first {max_length:,} tokens{cause}.",
        cure=f"Add answers to the examples, or {cure}." if empty else f"{cure.capitalize()}.",
    )


def _sizes(train: Documents, held_out: Documents) -> dict[str, int]:
    everything = np.concatenate([train.lengths, held_out.lengths])
    return {
        "examples": len(train),
        "held_out": len(held_out),
        "tokens": int(train.lengths.sum()),
        "longest": int(everything.max()),
        "median": int(np.median(train.lengths)),
    }
