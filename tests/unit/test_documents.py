"""The documents: every link, name of code and setting in them exists, and no line is too long."""

import ast
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    {
        *ROOT.glob("*.md"),
        *ROOT.glob("[a-z]*/README.md"),
        *(ROOT / "docs").rglob("*.md"),
    }
)
PACKAGES = ("ehr", "services", "actors", "training", "benchmarks", "tests")
FOLDERS = (*PACKAGES, "examples", "configs", "docs", "requirements", r"\.ci")
WIDTH = 100
CHANGELOG = ROOT / "CHANGELOG.md"
NAMES_OF_TODAY = [each for each in DOCUMENTS if each != CHANGELOG]
"""The changelog also names what is gone."""
GENERATED = ROOT / "docs" / "configuration.md"
LONG_LINES = (GENERATED,)
FENCE = re.compile(r"^ *```.*?^ *```$", re.M | re.S)
CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FILE_ENDINGS = {"py", "json", "jsonl", "html", "md", "parquet", "yaml", "txt"}


def prose(text: str) -> str:
    return FENCE.sub("", text)


def spans(page: Path) -> list[str]:
    """What stands in backticks in the prose of a page, line breaks as blanks."""
    return [" ".join(each.split()) for each in CODE.findall(prose(page.read_text()))]


@cache
def anchors(page: Path) -> frozenset[str]:
    """Anchors of a page: headings as GitHub spells them, and explicit ones."""
    text = prose(page.read_text())
    found = set(re.findall(r'<a id="([^"]+)"', text))
    for heading in re.findall(r"^#+ (.+)$", text, re.M):
        shown = LINK.sub(lambda link: link.group(0)[1:].split("]")[0], heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        number = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", each) is not None for each in found)
        found.add(f"{slug}-{number}" if slug in found else slug)
    return frozenset(found)


def broken_links(page: Path) -> list[str]:
    broken = []
    for target in LINK.findall(CODE.sub("`", prose(page.read_text()))):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


@cache
def defined(file: Path) -> frozenset[str]:
    """Names that a module defines or imports, members of classes as `Class.member`."""
    names = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                names.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{prefix}{node.name}.")
            if isinstance(node, ast.Assign):
                names.update(
                    prefix + each.id for each in node.targets if isinstance(each, ast.Name)
                )
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(prefix + node.target.id)
            if isinstance(node, ast.Import | ast.ImportFrom):
                names.update(alias.asname or alias.name for alias in node.names)

    visit(ast.parse(file.read_text()).body, "")
    return frozenset(names)


def is_code(name: str) -> bool:
    """Whether `package.module.Name` exists."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:count])
        file = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
        if file.exists():
            return count == len(parts) or ".".join(parts[count:]) in defined(file)
    return False


def unknown_names(page: Path) -> list[str]:
    packages = "|".join(PACKAGES)
    folders = "|".join(FOLDERS)
    unknown = []
    for span in spans(page):
        for name in re.findall(rf"(?<![\w./-])(?:{packages})(?:\.\w+)+(?![\w/])", span):
            unknown += [] if name.endswith(".NAME") or is_code(name) else [name]
        for name in re.findall(rf"(?<![\w./-])(?:{folders})/[\w./-]*(?![\w./*{{-])", span):
            is_placeholder = re.search(r"[A-Z]{3,}", name) and not name.endswith("README.md")
            unknown += [] if is_placeholder or (ROOT / name.rstrip(".")).exists() else [name]
        if re.fullmatch(r"test_\w+\.py", span) and not list((ROOT / "tests").rglob(span)):
            unknown.append(span)
    for name in re.findall(r"(?<![\w./-])configs/[\w./-]+\.yaml", page.read_text()):
        unknown += [] if (ROOT / name).exists() else [name]
    for name in re.findall(rf"python -m ((?:{packages})(?:\.[a-z_]\w*)*)", page.read_text()):
        unknown += [] if is_code(name) else [name]
    return unknown


@cache
def settings() -> dict[str, set[str]]:
    """Keys by section, from the generated page of all settings."""
    found: dict[str, set[str]] = {}
    for part in re.split(r"^## ", GENERATED.read_text(), flags=re.M)[1:]:
        found[part.split()[0]] = set(re.findall(r"^\| `(\w+)`", part, re.M))
    return found


def unknown_settings(page: Path) -> list[str]:
    sections = "|".join(settings())
    texts = [*spans(page), *FENCE.findall(page.read_text())]
    return [
        f"{section}.{key}"
        for text in texts
        for section, key in re.findall(rf"(?<![\w./\-])({sections})\.([a-z]\w*)\b(?![*(])", text)
        if key not in settings()[section] and key not in FILE_ENDINGS
    ]


def long_lines(page: Path) -> list[str]:
    """Lines of prose that are too long and could be broken."""
    return [
        line
        for line in prose(page.read_text()).splitlines()
        if len(line) > WIDTH
        and not line.lstrip().startswith(("|", "#", "<a "))
        and " " in line.strip().removeprefix("- ")
    ]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", DOCUMENTS, ids=named)
def test_every_link_and_anchor_leads_somewhere(page: Path):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", NAMES_OF_TODAY, ids=named)
def test_every_module_path_and_configuration_that_is_named_exists(page: Path):
    assert unknown_names(page) == []


@pytest.mark.parametrize("page", NAMES_OF_TODAY, ids=named)
def test_every_setting_that_is_named_exists(page: Path):
    assert unknown_settings(page) == []


@pytest.mark.parametrize("page", DOCUMENTS, ids=named)
def test_a_table_ends_with_a_blank_line(page: Path):
    lines = prose(page.read_text()).splitlines()

    glued = [
        line
        for row, line in pairwise(lines)
        if row.lstrip().startswith("|") and line.strip() and not line.lstrip().startswith("|")
    ]

    assert glued == []


@pytest.mark.parametrize("page", [each for each in DOCUMENTS if each not in LONG_LINES], ids=named)
def test_no_line_of_prose_is_too_long(page: Path):
    assert long_lines(page) == []
