"""Results about training data: its rows, columns and examples, and what is wrong with them."""

from typing import Literal

from pydantic import Field

from backend.results.base import Problem, Result


class RowProblem(Result):
    """A problem in one row of the data; rows are counted from 1, as in an editor."""

    row: int
    what: str
    value: str = ""
    """The value that is wrong, shortened."""
    file: str = ""
    """The file of the row, if the data is a folder of files."""

    @property
    def place(self) -> str:
        return place_of(self.row, self.file)


def place_of(row: int, file: str = "") -> str:
    """Return a row's position as text."""
    return f"{file}, row {row}" if file else f"row {row}"


RowKind = Literal[
    "bad",
    "empty",
    "nothing",
    "cut",
    "pieces",
    "duplicate",
    "both",
    "special",
    "split",
    "taught_end",
    "no_thought",
    "not_shown",
    "other_prompt",
]


class RowGroup(Result):
    """Rows with the same note, and the positions of the first ones."""

    kind: RowKind
    count: int
    places: tuple[str, ...]


class ColumnUse(Result):
    """A column of the data: what it is read as, empty if it is left out, and its filled rows."""

    name: str
    use: str
    rows: int


class Placeholder(Result):
    """A placeholder such as {{name}} without a text, and the number of rows that contain it."""

    name: str
    rows: int


class LengthBin(Result):
    """Examples of `low` to `high` tokens, both included."""

    low: int
    high: int
    examples: int


class DataStats(Result):
    """Statistics of a tokenised data set. `learned_tokens` counts the tokens with loss."""

    shape: str
    shape_reason: str
    rows: int
    held_out_rows: int = 0
    """How many of the rows come from separate held-out data."""
    examples: int
    held_out: int
    tokens: int
    learned_tokens: int
    longest: int
    median: int
    cut: int
    lost_share: float = 0.0
    """Share of the tokens with loss that lie beyond the cut, so that nothing learns them."""
    dropped: int
    bad: int = 0
    """Rows that cannot be used and were skipped, as requested."""
    overlap: int = 0
    """Rows that are also in the held-out data and therefore not trained on."""
    groups: tuple[RowGroup, ...] = ()
    columns: tuple[ColumnUse, ...] = ()
    placeholders: tuple[Placeholder, ...] = ()
    """Placeholders that stand in several rows and have no text."""
    histogram: tuple[LengthBin, ...] = ()
    """Lengths of all usable examples before they are cut."""
    notes: tuple[str, ...] = ()
    """Sentences on how the source is read and what of it is left out."""


class Example(Result):
    """One example as the model sees it: pieces of text, and whether each has loss."""

    pieces: list[tuple[str, bool]]
    tokens: int
    cut: bool
    row: int = 0
    left_out: str = ""
    """Why it is not trained on; empty if it is."""


class DataPreview(Result):
    """The first examples of a data set and its problems."""

    rows: int
    more_rows: bool = False
    """Whether there are more rows than that, which were not counted."""
    problems: list[RowProblem]
    stats: DataStats | None
    examples: list[Example]
    bad: int = 0
    """How many rows cannot be used; `problems` lists the first of them."""
    shape: str = ""
    """The format of the rows; empty if the user must choose the columns."""
    shape_reason: str = ""
    columns: tuple[str, ...] = ()
    uses: tuple[ColumnUse, ...] = ()
    """What the columns of the rows seen so far are read as."""
    placeholders: tuple[Placeholder, ...] = ()
    unfit: Problem | None = None
    """Why the rows are not for this, such as preference pairs; then there is no format."""
    instead: dict[str, str] = Field(default_factory=dict)
    """Roles of columns that can be learned from rows that are unfit as they are."""
    notes: tuple[str, ...] = ()
    """Sentences on how the source is read and what of it is left out."""
    quick: bool = True
    """Whether checking every row is quick: the data is small or already tokenised."""


class PreparedData(Result):
    """A data set that is stored on disk in tokenised form."""

    rows: int
    bad: int
    tokens: int
    seconds: float
