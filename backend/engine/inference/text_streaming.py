"""Tokens as text: while they come, one by one, and to look at."""

from typing import Any

_UNFINISHED = "\ufffd"
_FIRST_WIDE = 0x2E80  # from here on, scripts do not put spaces between words


class TextStream:
    """Turns one row's tokens into text as they come; hands out whole words only.

    A token may be part of a character, and what it adds may depend on the token before, so each
    time a short window is decoded again and the part that is new is taken.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._window, self._read = 0, 0
        self._held = ""

    def add(self, token: int) -> str:
        """Take a token; returns the words that are whole now, often none."""
        self._tokens.append(token)
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
    """Return how much of a text is whole words."""
    if text and ord(text[-1]) >= _FIRST_WIDE:
        return len(text)
    return max(text.rfind(space) for space in (" ", "\n", "\t")) + 1


def visible(tokenizer: Any, token: int) -> str:
    """Write one token so that people see it: spaces stay, and what is no text shows its name."""
    text = str(tokenizer.decode([token]))
    if not text or _UNFINISHED in text:
        return str(tokenizer.convert_ids_to_tokens(token))
    return text.replace("\n", "⏎").replace("\t", "⇥")


def spans(tokenizer: Any, tokens: list[int]) -> list[tuple[str, int]]:
    """Split a text into what its tokens show: (text, how many tokens it takes).

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
