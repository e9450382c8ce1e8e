"""The words behind `nuage`: told without their commands, imported when they are typed."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from nuage.cli.main import WORDS, main

HEAVY = {"aiohttp", "cryptography", "numpy", "nuage.daemon", "nuage.lab", "nuage.simulation"}
PROGRAM = """
import sys
from nuage.cli.main import main
main(sys.argv[1:], prog_name="nuage", standalone_mode=False)
print(*sys.modules, sep="\\n")
"""


@pytest.mark.parametrize("word", WORDS)
def test_the_list_says_of_each_word_what_its_command_says(word: str) -> None:
    assert WORDS[word].does == main.commands[word].get_short_help_str(300)


@pytest.mark.parametrize("typed", ["--help", "vm list -h", "volume list -h", "iaas create -h"])
def test_what_is_typed_imports_nothing_that_it_does_not_need(typed: str) -> None:
    words = [sys.executable, "-c", PROGRAM, *typed.split()]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "Usage: nuage" in done.stdout
    assert HEAVY & set(done.stdout.splitlines()) == set()


def test_a_word_that_is_none_is_told_which_was_meant() -> None:
    done = CliRunner().invoke(main, ["volumes", "list"])
    assert done.exit_code == 2
    assert "Did you mean 'volume'?" in done.output
