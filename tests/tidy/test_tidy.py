"""What a reader may count on in every file: size, words, and promises that name their test."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE_LINES_MAX = 800
FUNCTION_LINES_MAX = 70

# Longer than allowed when the rule came in; entries may only go.
LONG_FUNCTIONS: dict[str, int] = {}
# One file by design: who verifies copies and reads it alone.
LONG_FILES: dict[str, int] = {"python/nuage/trust/verify.py": 968}

# One spelling each (GLOSSARY.md), and words that say something about a workplace, not a product.
SPELLING = {
    r"\bdata[- ]centers?\b": "datacenter",
    r"\bdata[- ]centres?\b": "datacenter",
    r"\bdatacentres?\b": "datacenter",
    r"\bvirtual[- ]node\b": "V-node",
    r"\bIO node\b": "IO-node",
}
SOMEBODYS_PATH = r"(?<![\w./$}])/(?:home|Users|work(?:space)?s?)/[\w.-]+"
BANNED = (SOMEBODYS_PATH, r"\bTODO\b(?!.*#\d+)", r"\bFIXME\b", r"\bXXX\b")
QUOTING = {"tests/tidy/test_tidy.py"}  # it quotes what it forbids
TEXT = {".py", ".rs", ".c", ".h", ".md", ".toml", ".sh", ".pyi", ".html", ".js", ".css"}


def tracked() -> list[Path]:
    """Return the text files that belong to the project."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    names = [name for name in listed.split("\0") if name and Path(name).suffix in TEXT]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


FILES = tracked()
PYTHON = [file for file in FILES if file.suffix == ".py"]


def name_of(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_no_source_file_is_longer_than_a_reader_can_hold() -> None:
    long = {
        name_of(file): len(file.read_text().splitlines())
        for file in FILES
        if file.suffix in (".py", ".rs", ".c", ".h")
        and len(file.read_text().splitlines()) > FILE_LINES_MAX
    }
    assert {n: c for n, c in long.items() if c > LONG_FILES.get(n, FILE_LINES_MAX)} == {}
    assert set(LONG_FILES) <= set(long), "shorter now: take it off the list"


def functions(file: Path) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            found.append((f"{name_of(file)}::{node.name}", lines))
    return found


def test_no_function_is_longer_than_a_screen() -> None:
    product = [f for f in PYTHON if name_of(f).startswith(("python/", "benchmarks/", "tools/"))]
    long = {
        name: lines
        for file in product
        for name, lines in functions(file)
        # The tables of operations are lists, written as calls.
        if lines > FUNCTION_LINES_MAX and not name.endswith("::enter")
    }
    assert {n: c for n, c in long.items() if c > LONG_FUNCTIONS.get(n, FUNCTION_LINES_MAX)} == {}
    assert set(LONG_FUNCTIONS) <= set(long), "shorter now: take it off the list"


def hits(patterns: tuple[str, ...]) -> list[str]:
    joined = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    return [
        f"{name_of(file)}:{number}: {line.strip()[:80]}"
        for file in FILES
        if name_of(file) not in QUOTING
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), start=1)
        if joined.search(line)
    ]


def test_nothing_is_left_to_do_without_an_issue_and_no_workplace_is_named() -> None:
    assert hits(BANNED) == []


def test_every_word_has_one_spelling() -> None:
    assert hits(tuple(SPELLING)) == []


PROMISE = re.compile(r"`?((?:tests|crates|benchmarks)/[\w/.-]+\.(?:py|rs))(?:::(\w+))?`?")


def promises() -> list[tuple[str, str]]:
    specification = ROOT / "SPECIFICATION.md"
    if not specification.exists():
        return []
    return sorted({(m[1], m[2] or "") for m in PROMISE.finditer(specification.read_text())})


@pytest.mark.skipif(not promises(), reason="SPECIFICATION.md names no tests yet")
def test_every_promise_names_a_test_that_exists() -> None:
    missing = [
        f"{path}::{test}" if test else path
        for path, test in promises()
        if not (ROOT / path).is_file()
        or (test and not re.search(rf"(?:def|fn) {test}\b", (ROOT / path).read_text()))
    ]
    assert missing == []


LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")
NAMED = re.compile(r"`((?:docs|tests|python|crates|benchmarks|tools|bpf|systemd)/[\w./-]*\w)")


def test_every_link_and_path_in_a_document_leads_somewhere() -> None:
    lost = [
        f"{name_of(file)}: {target}"
        for file in FILES
        if file.suffix == ".md"
        for pattern, base in ((LINK, file.parent), (NAMED, ROOT))
        for target in pattern.findall(file.read_text())
        if not (base / target).exists()
    ]
    assert lost == []
