"""`nuage`: the group of all commands, and the one place that tells errors to people."""

import json
import sys
from collections.abc import Iterator, MutableMapping
from errno import EPIPE
from importlib import import_module
from typing import Final, NamedTuple

import click
from click.shell_completion import CompletionItem

from nuage import __version__
from nuage.api.client import ApiError
from nuage.api.errors import document_of
from nuage.cli.session import Session
from nuage.errors import NoCandidate, NuageError

INTERRUPTED: Final = 130  # what shells call the end by Ctrl-C: 128 + SIGINT


class Word(NamedTuple):
    """A word behind `nuage`, as it is known before its command is imported."""

    does: str  # the first sentence of the command's help
    modules: tuple[str, ...]  # of nuage.cli: the first has it among its COMMANDS, others add to it


WORDS: Final = {
    "address": Word("Public addresses: each goes wherever its VM goes.", ("addresses",)),
    "audit": Word("Who did what: each site's hash-chained, signed log.", ("audit",)),
    "backup": Word(
        "Back this machine's controller up into FILE, while it runs or not.", ("backup",)
    ),
    "completion": Word("Print a script that completes commands and options.", ("completion",)),
    "controller": Word("Run a site's controller: API, catalogue, placement.", ("daemons",)),
    "edge": Word("Run an edge: the RBridge that joins its site to the others.", ("daemons",)),
    "energy": Word("Watts, PUE, prices and carbon; rules, plans and accounts.", ("energy",)),
    "events": Word("Show what happens in the federation.", ("sites",)),
    "fabric": Word(
        "The network between nodes and sites: TRILL, and LISP for public addresses.",
        ("fabric",),
    ),
    "federation": Word("Found a federation, invite datacenters.", ("joining",)),
    "group": Word("Security groups: what the ports of VMs let in.", ("fabric",)),
    "iaas": Word(
        "Virtual clusters, each under its contract.",
        ("iaas", "contracts", "keys", "provenance"),
    ),
    "image": Word("Disk images that VMs start from.", ("iaas",)),
    "invite-node": Word(
        "Print a single-use token with which the node NODE joins this site; valid for a day.",
        ("joining",),
    ),
    "ionode": Word("Run an IO-node's agent: it stores.", ("daemons",)),
    "join-node": Word(
        "Join this node to its site in ROLE with TOKEN (- reads it from standard input).",
        ("joining",),
    ),
    "lab": Word("A whole federation's hardware on this machine.", ("bench",)),
    "login": Word(
        "Get a token for USER and make it the current profile; a token lives an hour.",
        ("iaas",),
    ),
    "logout": Word("Forget the profile NAME and its token.", ("profiles",)),
    "node": Word("The machines of the federation.", ("sites", "node_power", "lost_disks")),
    "pool": Word("Pools of public addresses, which operators define.", ("addresses",)),
    "port": Word(
        "Say what the port of VM lets through, and how fast; without options, show it.", ("fabric",)
    ),
    "profile": Word("Where commands go, and as whom; `nuage login` makes profiles.", ("profiles",)),
    "quorum-member": Word(
        "Run this site's member of the quorum (etcd, in place of this process).",
        ("daemons",),
    ),
    "rack": Word("The racks, Nuage's unit of administration.", ("sites",)),
    "recover-quorum": Word(
        "Make this site's member the whole quorum, once the majority is lost for good.",
        ("backup",),
    ),
    "restore": Word("Bring the controller of a lost machine back here from FILE.", ("backup",)),
    "segment": Word("Layer-2 networks of an IaaS.", ("iaas",)),
    "simulate": Word(
        "Try placement and energy out on recorded or made-up load; the same seed, the same bytes.",
        ("simulate",),
    ),
    "site": Word("The datacenters of the federation.", ("sites",)),
    "user": Word("Users and their roles.", ("iaas",)),
    "verify": Word(
        "Verify PATH offline: a volume's proof, a location ledger, or an exported audit log.",
        ("provenance",),
    ),
    "vm": Word("Virtual machines.", ("vms",)),
    "vnode": Word("Run a V-node's agent: it runs virtual machines.", ("daemons",)),
    "volume": Word(
        "Disks of an IaaS, each a replicated journal.",
        ("storage", "exports", "provenance"),
    ),
}
NO_API: Final = {
    "daemons",
    "joining",
    "bench",
    "backup",
}  # whose commands print no answer of the API


class Commands(MutableMapping[str, click.Command]):
    """The commands by their words, each imported when it is first asked for."""

    def __init__(self) -> None:
        self._imported: dict[str, click.Command] = {}

    def __getitem__(self, word: str) -> click.Command:
        if word not in self._imported:
            self._imported[word] = _imported(word)
        return self._imported[word]

    def __setitem__(self, word: str, command: click.Command) -> None:
        self._imported[word] = command

    def __delitem__(self, word: str) -> None:
        del self._imported[word]

    def __iter__(self) -> Iterator[str]:
        return iter(WORDS)

    def __len__(self) -> int:
        return len(WORDS)


def _imported(word: str) -> click.Command:
    """Return the command of a word, with what other modules add to it.

    Raises:
        KeyError: there is no such word.
    """
    names = WORDS[word].modules
    modules = [import_module(f"nuage.cli.{name}") for name in names]
    command: click.Command = next(c for c in modules[0].COMMANDS if c.name == word)
    if names[0] not in NO_API:
        _take_json(command)
    return command


def _as_json(context: click.Context, _option: click.Parameter, asked: bool) -> None:
    if asked:
        context.ensure_object(Session).as_json = True


def _take_json(command: click.Command) -> None:
    """Let `--json` stand behind the command too, as it may stand before it."""
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _take_json(inner)
    elif not any("--json" in parameter.opts for parameter in command.params):
        option = click.Option(
            ["--json"], is_flag=True, expose_value=False, callback=_as_json,
            help="Print the API's answer as JSON.",
        )  # fmt: skip
        command.params.append(option)


class NuageGroup(click.Group):
    """Lists its words without their commands; tells our errors in two lines."""

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write what each word does."""
        with formatter.section("Commands"):
            formatter.write_dl([(word, WORDS[word].does) for word in WORDS])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the words and options that begin so."""
        words = [
            CompletionItem(word, help=WORDS[word].does)
            for word in WORDS
            if word.startswith(incomplete)
        ]
        return words + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; exit with 1 on an error that a person can do something about."""
        try:
            return super().invoke(ctx)
        except NuageError as error:
            tell(error, as_json=ctx.obj is not None and ctx.obj.as_json)
            sys.exit(1)
        except OSError as error:
            if error.errno == EPIPE or error.filename is None:
                raise  # click ends quietly when nobody reads on; another is a fault of ours
            click.secho(f"error: {error.filename}: {error.strerror}", fg="red", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo(err=True)
            sys.exit(INTERRUPTED)


def tell(error: NuageError, *, as_json: bool) -> None:
    """Print an error on standard error; `as_json`: as the API would."""
    if as_json:
        document = error.document if isinstance(error, ApiError) else document_of(error)
        site = error.site if isinstance(error, ApiError) else ""
        answer = {"site": site, "request_id": error.request_id, "error": document}
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False), err=True)
        return
    field = getattr(error, "field", "")
    where = f" ({field})" if field else ""
    click.secho(f"error: {error.message}{where}", fg="red", err=True)
    if isinstance(error, NoCandidate):
        for candidate, rule, reason in error.refusals:
            click.echo(f"  {candidate:<24} {rule:<18} {reason}", err=True)
    if error.hint:
        click.echo(f"hint:  {error.hint}", err=True)


@click.group(
    cls=NuageGroup, commands=Commands(), context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(__version__, prog_name="nuage")
@click.option(
    "--profile", default="", envvar="NUAGE_PROFILE", help="Which federation, and who asks."
)
@click.option(
    "--site", default="", envvar="NUAGE_SITE", help="Ask this site; any shows the whole federation."
)
@click.option("--json", "as_json", is_flag=True, help="Print the API's answer as JSON.")
@click.pass_context
def main(context: click.Context, profile: str, site: str, as_json: bool) -> None:
    """Nuage joins small, independent datacenters into one sovereign cloud.

    For a first look on one machine, `nuage lab up` starts four datacenters here;
    `nuage site list` then shows them.
    """
    context.obj = Session(profile_name=profile, site=site, as_json=as_json)


if __name__ == "__main__":
    main()
