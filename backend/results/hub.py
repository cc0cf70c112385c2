"""What is known of a data set of the Hub before its download, and the download's result."""

from backend.results.base import Problem, Result


class HubDescription(Result):
    """A data set of the Hub, as far as its metadata and its list of files describe it.

    `problem` says why it cannot be downloaded as it is named: there is a choice to make, or access
    or disk space is missing. The rest is then filled in as far as possible.
    """

    source: str
    """Its name with configuration and split, so that it means the same later."""
    id: str
    revision: str = ""
    license: str = ""
    gated: bool = False
    configurations: tuple[str, ...] = ()
    configuration: str = ""
    splits: tuple[str, ...] = ()
    split: str = ""
    held_out: str = ""
    """The split that is held out."""
    rows: int | None = None
    """The rows to train on, if its metadata state them."""
    held_out_rows: int | None = None
    files: int = 0
    download_bytes: int = 0
    """The size of its files; `kept_bytes` of them are already on this machine."""
    kept_bytes: int = 0
    prepared_bytes: int = 0
    prepared_is_estimate: bool = False
    needed_bytes: int = 0
    """The disk space that download and preparation still need."""
    free_bytes: int = 0
    ready: bool = False
    """Whether it is on this machine, ready to be read."""
    first_rows: tuple[dict[str, str], ...] = ()
    first_rows_note: str = ""
    """Why there are no first rows."""
    notes: tuple[str, ...] = ()
    problem: Problem | None = None


class DownloadedData(Result):
    """A data set of the Hub that is on this machine."""

    source: str
    rows: int
    held_out_rows: int
    downloaded_bytes: int
    """What this download added; what an earlier attempt had left is not counted."""
    seconds: float
