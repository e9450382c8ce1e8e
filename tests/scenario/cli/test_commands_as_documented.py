"""What the documents say of the command line is what it does.

`docs/guide/commands.md` is written from the commands themselves (`pytest --rewrite`); every
`nuage …` that any document shows must be a command, with options that it has.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from nuage.cli.main import main

ROOT = Path(__file__).parents[3]
GUIDE = ROOT / "docs/guide/commands.md"
DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")} - {ROOT / "CHANGELOG.md"})
SHOWN = re.compile(r"`nuage ([^`]+)`|^\s*(?:\$ )?nuage ([^#\n`]+)", re.MULTILINE)
SOURCES = sorted((ROOT / "python").rglob("*.py"))
ADVISED = re.compile(r"`nuage ([^`]+)`")
STOPS = ("·", "|", ">", "<", "&&", ";", "…", "(", "\\")
HEAD = """# Commands

Written from the commands themselves, by `pytest --rewrite tests/scenario/cli`. `-h` after any of
them shows its arguments and options; `--json` prints the API's answer; `--site SITE` asks
another site. Done is exit code 0, refused or failed 1 (`--json` prints the error as JSON, too, on
standard error), mistyped 2, Ctrl-C 130. `nuage completion bash` prints what a shell needs to
complete them.
"""


def walk(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from walk(command.commands[name], (*path, name))
    else:
        yield " ".join(path), command


def usage(path: str, command: click.Command) -> str:
    with click.Context(command, info_name=path) as context:
        pieces = [piece for piece in command.collect_usage_pieces(context) if piece != "[OPTIONS]"]
    return " ".join((f"nuage {path}", *pieces))


def guide() -> str:
    lines, group = [HEAD], ""
    for path, command in walk(main):
        if path.split()[0] != group:
            group = path.split()[0]
            lines.append(f"\n## {group}\n\n| command | does |\n|---|---|")
        does = command.get_short_help_str(limit=300)
        lines.append(f"| `{usage(path, command).replace('|', '/')}` | {does} |")
    return "\n".join(lines) + "\n"


def test_the_guide_lists_every_command_as_it_is(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--rewrite"):
        GUIDE.write_text(guide())
    assert GUIDE.read_text() == guide(), "pytest --rewrite tests/scenario/cli, then read the diff"


def test_every_command_says_what_it_does() -> None:
    silent = [path for path, command in walk(main) if not (command.help or "").strip()]
    assert silent == []


def shown_commands() -> list[tuple[str, str]]:
    """Return each command line with the name of the file that shows it: documents and hints."""
    documents = [
        (document.name, (match[1] or match[2]).strip())
        for document in DOCUMENTS
        for match in SHOWN.finditer(document.read_text())
    ]
    return documents + [
        (source.name, match[1].strip())
        for source in SOURCES
        for match in ADVISED.finditer(source.read_text())
    ]


def problem_with(text: str) -> str:
    """Return what is wrong with a command line that a document shows, or ""."""
    for stop in STOPS:
        text = text.partition(stop)[0]
    command: click.Command = main
    words = shlex.split(text.replace("'", "").replace('"', ""))
    while words and isinstance(command, click.Group):
        if words[0].startswith("-"):
            takes = next((p for p in command.params if words[0].split("=")[0] in p.opts), None)
            if takes is None:
                return f"no option {words[0]}"
            is_flag = isinstance(takes, click.Option) and takes.is_flag
            words = words[1:] if is_flag or "=" in words[0] else words[2:]
            continue
        word = words.pop(0)
        for name in word.split("|"):
            if name.isupper() or name == "…":
                return ""  # "nuage COMMAND": any
            if name not in command.commands:
                return f"no command {name!r}"
        command = command.commands[word.split("|")[0]]
    options = {opt for p in command.params for opt in (*p.opts, *p.secondary_opts)} | {
        "-h",
        "--help",
    }
    bad = [w for w in words if re.match(r"--?[a-z]", w) and w.split("=")[0] not in options]
    return f"no option {bad[0]}" if bad else ""


def test_every_command_that_a_document_or_a_hint_shows_exists() -> None:
    shown = shown_commands()
    assert len(shown) > 40, "the documents show commands: the search is broken"
    wrong = [(name, text, why) for name, text in shown if (why := problem_with(text))]
    assert wrong == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(shell: str) -> None:
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0, done.output
    assert "_NUAGE_COMPLETE" in done.output


def test_a_half_typed_command_is_completed() -> None:
    env = {
        **os.environ,
        "_NUAGE_COMPLETE": "bash_complete",
        "COMP_WORDS": "nuage vm mi",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", "from nuage.cli.main import main; main(prog_name='nuage')"],
        env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "plain,migrate" in done.stdout, done.stderr
