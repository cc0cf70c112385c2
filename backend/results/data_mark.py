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
    shape: str = ""
    """What the rows were read as; empty in records of earlier versions."""

    def is_same(self, other: "DataMark") -> bool:
        """Return whether the examples are the same; what they are called does not matter."""
        return self.model_copy(update={"shape": other.shape}) == other
