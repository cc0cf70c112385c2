"""Placeholders such as `{{name}}`: found in the texts of rows, and replaced by a person's values.

Public identity data holds them where the reader's own names belong; learned as they stand, they
would be the model's answer.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

# Neither LaTeX (`\frac{{a}}{{b}}`, `x^{{10}}`) nor a part of a word; names of any script.
PLACEHOLDER = re.compile(r"(?<![A-Za-z\\^_])\{\{\s*([^\W\d][\w .-]{1,39}?)\s*\}\}")
FEWEST_ROWS = 2
"""So many rows with the same one are no accident."""
MOST = 1_000
"""So many different names are counted; a file of templates may hold any number."""
Values = Mapping[str, str]


def found_in(text: str, *, into: set[str]) -> None:
    """Add the names of a text's placeholders."""
    if "{{" in text:
        into.update(PLACEHOLDER.findall(text))


def recurring(counts: Counter[str], values: Values) -> dict[str, int]:
    """Return the placeholders without a value that stand in several rows, with their rows."""
    return {
        name: rows
        for name, rows in counts.most_common()
        if rows >= FEWEST_ROWS and name not in values
    }


def filler(values: Values) -> Callable[[Any], Any]:
    """Return a function that fills the placeholders of any value of a row, however nested."""

    def fill(value: Any) -> Any:
        if isinstance(value, str):
            return PLACEHOLDER.sub(replaced, value) if "{{" in value else value
        if isinstance(value, list):
            return [fill(each) for each in value]
        if isinstance(value, dict):
            return {key: fill(each) for key, each in value.items()}
        return value

    def replaced(match: "re.Match[str]") -> str:
        return values.get(match[1], match[0])

    return fill
