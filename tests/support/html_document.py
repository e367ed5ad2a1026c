"""HTML as a reader has it: elements, texts and tables; tags that do not match are an error."""

from __future__ import annotations

import html.parser

VOID = {"meta", "input", "br", "img", "link", "hr"}


class Document(html.parser.HTMLParser):
    """What is found in a page or a piece of one."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []  # elements and their attributes
        self.texts: dict[str, str] = {}  # by id, or else by element
        self.rows: list[list[str]] = []  # the cells of all tables
        self.text = ""  # all of it, without styles
        self.feed(page)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    @property
    def tags(self) -> set[str]:
        return {tag for tag, _ in self.found}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            key = self.found[-1][1].get("id") or self.open[-1]
            self.texts[key] = self.texts.get(key, "") + data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)
        self.text += data if "style" not in self.open else ""
