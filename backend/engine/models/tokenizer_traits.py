"""What a tokenizer does that its users have to know, found by looking at what it does to a text.

Knows nothing of files, data or models; how many tokens have an embedding is set when it is read.
"""

from typing import Any
from weakref import WeakKeyDictionary

from backend.engine.core import template_syntax

_EMBEDDED: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_APPENDED: WeakKeyDictionary[Any, dict[bool, list[int]]] = WeakKeyDictionary()
TRIED = ("a", "7", "Hello there", "x = 1;")
SHOWN = 3
PLACELESS = "the tokenizer has no fast version and does not tell where a token is in its text"


def set_embedded(tokenizer: Any, rows: int) -> None:
    """Remember that only the tokens below `rows` have an embedding, if there are others."""
    largest = max([len(tokenizer) - 1, *tokenizer.added_tokens_decoder])
    if largest >= rows and max(tokenizer.get_vocab().values(), default=0) >= rows:
        _EMBEDDED[tokenizer] = rows
    else:
        _EMBEDDED.pop(tokenizer, None)


def embedded(tokenizer: Any) -> int | None:
    """Return how many tokens have an embedding; None where all have one, or it is not known."""
    return _EMBEDDED.get(tokenizer)


def first_beyond(ids: Any, tokenizer: Any) -> int | None:
    """Return the first of these ids that has no embedding; None where all have one.

    ids: token ids in any number of nested lists, or an array or tensor of them.
    """
    rows = embedded(tokenizer)
    if rows is None:
        return None
    flat = ids.reshape(-1).tolist() if hasattr(ids, "reshape") else ids
    return next((id for id in flat if id >= rows), None)


def shown(token: int, tokenizer: Any) -> str:
    """Return a token as its tokenizer writes it, at most 40 characters of it."""
    words = tokenizer.decode([token]).strip() or tokenizer.convert_ids_to_tokens(token)
    return str(words)[:40]


def prompt_ids(text: str, tokenizer: Any, *, special: bool) -> list[int]:
    """Tokenise a text that something follows: without the end mark that some tokenizers append."""
    ids: list[int] = tokenizer(text, add_special_tokens=special).input_ids
    end = appended(tokenizer, special=special)
    return ids[: -len(end)] if end and ids[-len(end) :] == end else ids


def appended(tokenizer: Any, *, special: bool = True) -> list[int]:
    """Return the special tokens that a tokenizer appends to every text by itself."""
    known = _APPENDED.setdefault(tokenizer, {})
    if special not in known:
        known[special] = _find_appended(tokenizer, special)
    return known[special]


def padding(tokenizer: Any) -> int:
    """Return a token with an embedding for places that are masked."""
    pad = tokenizer.pad_token_id
    return pad if pad is not None and first_beyond([pad], tokenizer) is None else 0


def complete(tokenizer: Any, ends: list[int]) -> None:
    """Give a tokenizer without an end mark that of the model, the first of `ends` that it knows."""
    if tokenizer.eos_token is not None:
        return
    known = (tokenizer.convert_ids_to_tokens(id) for id in ends if 0 <= id < len(tokenizer))
    tokenizer.eos_token = next((each for each in known if each), None)


def notes(tokenizer: Any) -> list[str]:
    """Return sentences about what is unusual in a tokenizer."""
    found = []
    if not tokenizer.is_fast:
        found.append(
            f"{PLACELESS.capitalize()} ({type(tokenizer).__name__}), so the base can be used but "
            "not trained."
        )
    if (rows := embedded(tokenizer)) is not None:
        beyond = sorted(id for id in tokenizer.get_vocab().values() if id >= rows)
        listed = ", ".join(shown(id, tokenizer) for id in beyond[:SHOWN])
        listed += ", ..." if len(beyond) > SHOWN else ""
        count = f"{len(beyond):,} tokens" if len(beyond) > 1 else "1 token"
        found.append(
            f"The tokenizer knows {count} that the model has no embedding for ({listed}): texts "
            "that contain them cannot be used."
        )
    if end := appended(tokenizer):
        marks = " ".join(shown(id, tokenizer) for id in end)
        found.append(f"The tokenizer appends {marks} to every text; prompts are used without it.")
    if tokenizer.eos_token is None and not tokenizer.chat_template:
        found.append("No file names an end mark: answers end where their number of tokens is used.")
    if fault := template_syntax.fault(tokenizer):
        found.append(
            f"Its chat template cannot be read ({fault}), so it cannot chat or train on "
            f"conversations. {template_syntax.OTHER_TEMPLATE}"
        )
    return found


def _find_appended(tokenizer: Any, special: bool) -> list[int]:
    marks = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    texts = [tokenizer(each, add_special_tokens=special).input_ids for each in TRIED]
    end: list[int] = []
    for last in zip(*(reversed(ids) for ids in texts), strict=False):
        if len(set(last)) > 1 or last[0] not in marks:
            break
        end.insert(0, last[0])
    return end
