"""A report's page, parsed: what it consists of and what it says."""

from html.parser import HTMLParser
from pathlib import Path

from training.report.page import write_report

VOID = {"meta", "path", "rect", "circle", "i", "input"}
EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&"
"""What a hostile model would write."""


class Page(HTMLParser):
    """Collects what a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        """Elements that are not closed yet, at the end those that never are."""
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        """Everything to read, single blanks between."""
        return " ".join(" ".join(self.texts).split())


def read_page(run_dir: Path) -> Page:
    """Writes the report of a run folder and parses it."""
    return Page(write_report(run_dir).read_text("utf-8"))
