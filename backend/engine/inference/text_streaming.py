"""Text streaming: tokens as text while they are generated, and as visible pieces.

Knows nothing of models."""

from typing import Any

_UNFINISHED = "\ufffd"
_FIRST_WIDE = 0x2E80  # from this code point on, scripts put no spaces between words


class TextStream:
    """Turns one row's tokens into text while they come; returns complete words only.

    A token may be part of a character, and its text may depend on the token before. So each time a
    short window is decoded again, and only the new part is taken.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._window, self._read = 0, 0
        self._held = ""

    def add(self, *tokens: int) -> str:
        """Add tokens; return the words that are complete now, often none."""
        self._tokens.extend(tokens)
        before = self._decode(self._tokens[self._window : self._read])
        now = self._decode(self._tokens[self._window :])
        if len(now) <= len(before) or now.endswith(_UNFINISHED):
            return ""
        self._window, self._read = self._read, len(self._tokens)
        self._held += now[len(before) :]
        return self._take(_whole(self._held))

    def end(self) -> str:
        """Return what is still held back."""
        before = self._decode(self._tokens[self._window : self._read])
        self._held += self._decode(self._tokens[self._window :])[len(before) :]
        self._window = self._read = len(self._tokens)
        return self._take(len(self._held))

    def _take(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True)) if tokens else ""


def _whole(text: str) -> int:
    """Return the length of a text up to its last complete word."""
    if text and ord(text[-1]) >= _FIRST_WIDE:
        return len(text)
    return max(text.rfind(space) for space in (" ", "\n", "\t")) + 1


def visible(tokenizer: Any, token: int) -> str:
    """Return one token as visible text: with its spaces, or its name where it is not text."""
    text = str(tokenizer.decode([token]))
    if not text or _UNFINISHED in text:
        return str(tokenizer.convert_ids_to_tokens(token))
    return text.replace("\n", "⏎").replace("\t", "⇥")


def spans(tokenizer: Any, tokens: list[int]) -> list[tuple[str, int]]:
    """Split a text into the pieces of its tokens: (text, number of tokens).

    A character that takes several tokens becomes one span; the spans add up to the text.
    """
    found: list[tuple[str, int]] = []
    window = read = start = 0
    for end in range(1, len(tokens) + 1):
        before, now = (str(tokenizer.decode(tokens[window:to])) for to in (read, end))
        if end < len(tokens) and (len(now) <= len(before) or now.endswith(_UNFINISHED)):
            continue
        found.append((now[len(before) :], end - start))
        window, read, start = read, end, end
    return found
