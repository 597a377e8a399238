"""Reads a rendered page as a browser and a screen reader would, and says what is wrong with it."""

from html.parser import HTMLParser

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
LABELLED = {"input", "select", "textarea"}
UNLABELLED_TYPES = {"hidden", "submit", "button"}


class Markup(HTMLParser):
    """`faults` are sentences; `language` and `direction` are the document's."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.language = self.direction = ""
        self._open: list[str] = []
        self._ids: list[str] = []
        self._labels: set[str] = set()
        self._fields: list[str] = []
        self._headings = 0
        self._landmarks: list[str] = []
        self.feed(text)
        self.close()
        self._judge()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "html":
            self.language, self.direction = values["lang"], values["dir"]
        if tag == "form" and tag in self._open:
            self.faults.append("a form within a form")
        if tag not in VOID:
            self._open.append(tag)
        self._headings += tag == "h1"
        self._landmarks.append(tag)
        if "id" in values:
            self._ids.append(values["id"])
        if "for" in values:
            self._labels.add(values["for"])
        if tag in LABELLED and values.get("type") not in UNLABELLED_TYPES and "aria-label" not in values:
            self._fields.append(values.get("id", f"a nameless {tag}"))
        self._inline(tag, values)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self._open or self._open[-1] != tag:
            self.faults.append(f"</{tag}> closes {self._open[-1] if self._open else 'nothing'}")
        else:
            self._open.pop()

    def _inline(self, tag: str, values: dict[str, str]) -> None:
        bad = [name for name in values if name == "style" or name.startswith(("on", "hx-on"))]
        if bad:
            self.faults.append(f"<{tag}> has {', '.join(bad)}")
        if tag == "style" or (tag == "script" and "src" not in values):
            self.faults.append(f"<{tag}> is inline")

    def _judge(self) -> None:
        if self._open:
            self.faults.append(f"never closed: {', '.join(self._open)}")
        if self._headings != 1:
            self.faults.append(f"{self._headings} h1")
        if self._landmarks.count("main") != 1:
            self.faults.append(f"{self._landmarks.count('main')} main")
        twice = {value for value in self._ids if self._ids.count(value) > 1}
        if twice:
            self.faults.append(f"ids that occur twice: {', '.join(sorted(twice))}")
        bare = [field for field in self._fields if field not in self._labels]
        if bare:
            self.faults.append(f"fields without a label: {', '.join(bare)}")
