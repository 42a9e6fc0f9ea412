"""Rules that every page of the project keeps, checked on its HTML."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "wbr", "link", "input", "hr"}


class _Rules(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.mains = self.titles = self.axes = 0
        self.captions: list[str] = []
        self.groups: list[dict[str, bool]] = []  # has a switch, has boxes
        self.table: list[list[tuple[str, bool]]] = []  # rows of the table at hand: text, whether it is marked best

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        kinds = (given.get("class") or "").split()
        if tag not in VOID:
            self.open.append(tag)
        if tag == "main":
            self.mains += 1
        if tag == "th":
            assert given.get("scope") in ("col", "colgroup", "row", "rowgroup"), f"th without scope: {given}"
        if tag == "table":
            self.captions.append("")
            self.table = []
        if tag == "tr":
            self.table.append([])
        if tag in ("th", "td") and self.table:
            self.table[-1].append(("", "best" in kinds))
        if tag == "figure":
            self.titles = self.axes = 0
        self.axes += "grid" in kinds
        if tag == "text" and "title" in kinds:
            self.titles += 1
        if tag == "div" and "group" in kinds:
            self.groups.append({"switch": False, "boxes": False})
        if tag == "label" and "boxes" in kinds:
            self.groups[-1]["switch"] = True
        if ("box" in kinds or "data-box" in given) and self.groups:
            self.groups[-1]["boxes"] = True

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "table":
            assert self.captions[-1], "a table without a caption"
            self._check_columns()
        if tag == "figure":
            assert self.titles or not self.axes, "a chart whose axes have no title"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "caption":
            self.captions[-1] += data
        elif self.table and self.table[-1] and ("td" in self.open or "th" in self.open):
            text, best = self.table[-1][-1]
            self.table[-1][-1] = (text + data, best)

    def _check_columns(self) -> None:
        width = max(map(len, self.table))
        rows = [row for row in self.table if len(row) == width]
        for column in range(1, width):
            cells = [row[column][0].strip() for row in rows[1:]]
            assert not cells or set(cells) != {"-"}, f"a column of dashes only: {rows[0][column][0]}"
        marked = [cell for row in rows for cell in row if cell[1]]
        assert all(any(c.isdigit() for c in text) for text, _ in marked)


def check_page(text: str) -> None:
    """One ``main``; tables with captions, scopes and no empty column; charts with axis titles; a switch only where there are boxes."""
    rules = _Rules()
    rules.feed(text)
    rules.close()
    assert rules.mains == 1, f"{rules.mains} main elements"
    for group in rules.groups:
        assert group["switch"] == group["boxes"], group
