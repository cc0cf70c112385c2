"""Tables as trees for `safe_view`; on a phone each row becomes a card."""

from collections.abc import Sequence

from ui.components.safe_view import Child, Node, el


def table(title: str, heads: Sequence[str], rows: Sequence[Node]) -> Node:
    """Describe a table; on a phone each row becomes a card, so cells carry their head."""
    head = el("thead", el("tr", *(el("th", name, scope="col") for name in heads)))
    caption = el("caption", title, cls="aw-only-read")
    return el("div", el("table", caption, head, el("tbody", *rows)), cls="aw-table")


def cell(head: str, *content: Child, cls: str | None = None) -> Node:
    """Describe one cell."""
    return el("td", *content, data_label=head, cls=cls)
