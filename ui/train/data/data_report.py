"""What is in a data set, as trees for `safe_view`: lengths, notes on rows, rows to fix."""

from backend import results as rs
from ui.components import units
from ui.components.safe_view import Child, Node, button, el

SHOWN_NAME = 60
KINDS: dict[str, tuple[str, str]] = {
    "empty": ("Empty", "no answer or text to train on, or its weight is 0: left out"),
    "nothing": ("No tokens with loss", "the answer starts after the maximum length: left out"),
    "cut": ("Cut", "longer than the maximum length: the end is cut off"),
    "pieces": (
        "Split into pieces",
        "longer than the maximum length: each piece is an example, and nothing is lost",
    ),
    "duplicate": ("Duplicates", "the same as an earlier row: every copy is trained on"),
    "both": ("Also held out", "also in the held-out data: not trained on"),
    "special": (
        "Contain special tokens",
        "the base reads these texts as special tokens, not as text. That is only right if the rows "
        "already contain its chat template",
    ),
    "split": (
        "Several texts",
        "the chat template shows earlier answers in another way than the last one, so each answer "
        "is trained on in the conversation up to it: such a row counts once per answer",
    ),
    "taught_end": (
        "End added",
        "the chat template has no end of an answer, so the model's end-of-text token is added and "
        "trained on",
    ),
    "no_thought": ("Thoughts left out", "the chat template does not show them: not trained on"),
    "not_shown": (
        "Not shown",
        "the chat template leaves out a turn, such as the system prompt: not seen by the model",
    ),
    "other_prompt": (
        "The prompt opens a thought",
        "the chat template asks for answers with an opened thought that these answers do not have. "
        "The workbench asks this adapter without it; other programs may need their option for "
        "answers without thinking",
    ),
}


def report(preview: rs.DataPreview, longest: int, *, left_out: bool = False) -> Node:
    """Describe a data set: its format, the lengths of its examples, and notes on its rows.

    `left_out`: whether the user chose to leave bad rows out.
    """
    stats = preview.stats
    return el(
        "div",
        el("p", _what_it_is(preview)),
        *(el("p", note, cls="aw-small") for note in preview.notes),
        _unfit(preview.unfit) if preview.unfit else None,
        bad_rows(preview, left_out=left_out),
        _columns(preview) if preview.uses else None,
        _lost(stats) if stats and stats.lost_share else None,
        lengths(stats.histogram, longest, stats.median) if stats and stats.histogram else None,
        _groups(stats.groups) if stats and stats.groups else None,
        cls="aw-data-report",
    )


def read_as(shape: str, reason: str) -> str:
    """Return the format that the rows were read as, and why."""
    if reason.startswith("you chose"):
        return f"Y{reason[1:]}."
    return f"Read as {shape}, because {reason}." if shape else ""


def counted(preview: rs.DataPreview) -> str:
    """Return how many rows there are, or at least how many."""
    rows = units.plural(preview.rows, "row")
    return f"more than {rows}" if preview.more_rows else rows


def _what_it_is(preview: rs.DataPreview) -> str:
    rows = f"{counted(preview)[:1].upper()}{counted(preview)[1:]}."
    if not preview.shape:
        columns = ", ".join(preview.columns)
        return f"{rows} The columns are {columns}; set their roles under Choose columns."
    shown = f"Shown below: {units.plural(len(preview.examples), 'example')}"
    said = f"{rows} {read_as(preview.shape, preview.shape_reason)}"
    if not preview.quick:
        return f"{said} {shown}; the other rows are not checked yet."
    return f"{said} {shown}."


def _lost(stats: rs.DataStats) -> Node:
    share = units.percent(stats.lost_share)
    said = f"{share} of the text to learn lies beyond the longest example and has no loss."
    return el("p", el("strong", said), " Raise the longest example, or split longer examples.")


def _unfit(unfit: rs.Problem) -> Node:
    return el("p", el("strong", unfit.what), f" {unfit.cure}", cls="aw-note warn")


def _columns(preview: rs.DataPreview) -> Node:
    """Say what each column is read as, or that it is left out."""
    uses = sorted(preview.uses, key=lambda each: not each.use)
    items = [_column(each, preview.rows if preview.stats else 0) for each in uses]
    return el("dl", *items, cls="aw-facts aw-columns", aria_label="Columns")


def _column(column: rs.ColumnUse, rows: int) -> Node:
    filled = f", in {units.plural(column.rows, 'row')}" if 0 < column.rows < rows else ""
    use = f"{column.use}{filled}" if column.use else "left out"
    if not column.rows:
        use = f"{use}, empty" if column.use else "left out: it is empty"
    return el(
        "div",
        el("dt", column.name[:SHOWN_NAME]),
        el("dd", use, cls="" if column.use else "aw-quiet"),
    )


def bad_rows(preview: rs.DataPreview, *, left_out: bool) -> Node | None:
    """List the rows that cannot be used, with a button to leave them out; None if all are good."""
    if not preview.problems:
        return None
    more = preview.bad - len(preview.problems)
    items = [_bad_row(problem) for problem in preview.problems]
    listed = el("ul", *items, cls="aw-rows", tabindex="0", aria_label="Rows that cannot be used")
    found = f"{units.plural(preview.bad, 'row')} cannot be used"
    return el(
        "div",
        el("p", el("strong", f"{found}, and left out." if left_out else f"{found}.")),
        listed,
        el("p", f"And {units.count(more)} more.", cls="aw-quiet") if more > 0 else None,
        None if left_out or preview.bad >= preview.rows else drop_button(preview.bad),
        cls="aw-note wait" if left_out else "aw-note warn",
    )


def drop_button(count: int = 0) -> Node:
    """Return the button that leaves the bad rows out."""
    which = f"the {units.plural(count, 'bad row')}" if count > 1 else "the bad row"
    return button(f"Leave {which} out" if count else "Leave bad rows out", "drop", kind="mend")


def _bad_row(problem: rs.RowProblem) -> Node:
    place = problem.place[0].upper() + problem.place[1:] if not problem.file else problem.place
    shown = problem.value and problem.value not in problem.what
    value = el("code", problem.value, cls="aw-path") if shown else None
    return el("li", el("strong", f"{place}: "), problem.what, ": " if shown else None, value)


# -- lengths -------------------------------------------------------------------------------------


def lengths(bins: tuple[rs.LengthBin, ...], longest: int, median: int = 0) -> Node:
    """Draw a histogram of the lengths, with the same numbers as text for screen readers."""
    most = max(each.examples for each in bins)
    bars = [
        el(
            "div",
            el("div", cls="aw-hist-bar cut" if each.low > longest else "aw-hist-bar",
               share=each.examples / most),
            title=_bin_words(each),
            cls="aw-hist-slot",
        )
        for each in bins
    ]  # fmt: skip
    return el(
        "div",
        el("p", el("strong", finding(bins, longest, median)), cls="aw-memory-title"),
        el("div", *bars, cls="aw-hist", aria_hidden="true"),
        el(
            "div",
            el("span", units.plural(bins[0].low, "token")),
            el("span", f"tallest bar: {units.plural(most, 'example')}"),
            el("span", _end_of_axis(bins)),
            cls="aw-hist-axis aw-quiet",
            aria_hidden="true",
        ),
        el("ul", *(el("li", _bin_words(each)) for each in bins), cls="aw-only-read"),
        cls="aw-memory",
    )


def _end_of_axis(bins: tuple[rs.LengthBin, ...]) -> str:
    last = bins[-1]
    if len(bins) < 2 or last.low == bins[-2].high + 1:
        return units.plural(last.high, "token")
    begins = "" if last.low == last.high else f"{units.count(last.low)} to "
    return f"last bar: {begins}{units.plural(last.high, 'token')}"  # an outlier


def finding(bins: tuple[rs.LengthBin, ...], longest: int, median: int = 0) -> str:
    """Return the main finding about the lengths; `median` is that of the cut examples."""
    total, seen, middle = sum(each.examples for each in bins), 0, bins[0]
    for middle in bins:
        seen += middle.examples
        if 2 * seen >= total:
            break
    over = sum(each.examples for each in bins if each.low > longest)
    most = median if middle.low <= median <= middle.high else middle.high
    half = f"Half of the examples have at most {units.plural(most, 'token')}"
    if bins[-1].high <= longest:
        return f"{half}; none is cut."
    if over:
        return f"{half}; {units.count(over)} or more are cut at {units.count(longest)}."
    return f"{half}; few reach the cut at {units.count(longest)}."


def _bin_words(each: rs.LengthBin) -> str:
    span = (
        units.plural(each.low, "token")
        if each.low == each.high
        else f"{units.count(each.low)} to {units.count(each.high)} tokens"
    )
    return f"{span}: {units.plural(each.examples, 'example')}"


def _groups(groups: tuple[rs.RowGroup, ...]) -> Node:
    rows: list[Child] = []
    for group in groups:
        if group.kind not in KINDS:  # bad rows are listed one by one
            continue
        title, meaning = KINDS[group.kind]
        more = group.count - len(group.places)
        places = ", ".join(group.places) + (f" and {units.count(more)} more" if more > 0 else "")
        rows.append(
            el(
                "div",
                el("dt", f"{title}: {units.count(group.count)}"),
                el("dd", meaning, el("div", places, cls="aw-quiet aw-small")),
            )
        )
    return el("dl", *rows, cls="aw-facts aw-groups")
