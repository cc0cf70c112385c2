"""What training data was when it was read: enough to notice that it has changed, and to say how."""

from backend.results.base import Result


class DataMark(Result):
    """The data of a run; digests are of contents, not of files."""

    rows: int
    content: str
    held_out_rows: int = 0
    """Rows of separate held-out data, which `rows` does not count."""
    held_out_content: str = ""
    examples: str = ""
    """Of the tokens that are trained on, and of which of them have a loss."""
    held_out_examples: str = ""
    """Of the tokens that the run is tested on."""
