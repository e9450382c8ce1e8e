"""Where data has been: `nuage volume trace|prove`, `nuage iaas check`, `nuage verify`."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from nuage.cli.iaas import iaas_group
from nuage.cli.moments import read_moment
from nuage.cli.paths import FILE, NEW_FILE
from nuage.cli.session import Session, iaas_option, pass_session
from nuage.cli.showing import Row, answered, day, listed, print_table, row_of
from nuage.cli.storage import volume_group
from nuage.errors import CorruptData, InvalidRequest, SovereigntyViolation

F = TypeVar("F", bound=Callable[..., Any])


def time_options(function: F) -> F:
    """Add the options that restrict a trace or a proof to a time."""
    begin = click.option(
        "--from", "begin", default="", metavar="TIME",
        help="Only what lay somewhere after: HH:MM:SS, 2026-12-01T18:00, '15min ago'.",
    )  # fmt: skip
    end = click.option("--until", "end", default="", metavar="TIME", help="Only what did before.")
    return begin(end(function))


def _window(begin: str, end: str) -> dict[str, object]:
    times: dict[str, object] = {}
    for name, text in (("from_s", begin), ("until_s", end)):
        moment = read_moment(text) if text else {}
        if text and "time_s" not in moment:
            raise InvalidRequest(f"{text!r} is no time", field=name, hint="name a time, no write")
        times |= {name: moment["time_s"]} if text else {}
    return times


def _pages(session: Session, path: str, asked: dict[str, object]) -> Iterator[Row]:
    """Ask for one page after the other."""
    after = ""
    while True:
        page = row_of(session.client.get(path, **asked, after=after))
        yield page
        after = str(page["next"])
        if not after:
            return


@volume_group.command("trace")
@click.argument("name")
@time_options
@iaas_option
@pass_session
def trace_volume(session: Session, name: str, begin: str, end: str, iaas: str) -> None:
    """Tell where each segment of a volume has been, from when to when, and under whose law."""
    pages = list(_pages(session, f"{session.volume_path(iaas, name)}/trace", _window(begin, end)))
    stays = [stay for page in pages for stay in listed(page, "stays")]
    silent = sorted({site for page in pages for site in listed(page, "silent")}, key=str)
    answer = {**pages[0], "stays": stays, "silent": silent, "next": ""}
    if answered(session, answer):
        return
    rows = [
        (
            stay["segment"], f"#{stay['first_sequence']}–{stay['last_sequence']}", stay["node"],
            f"{stay['site']}, {stay['country']}",
            f"{stay['operator']} ({stay['operator_country']})", stay["disk"],
            day(stay["since_s"]), _end_of(stay),
        )
        for stay in listed(answer, "stays")
    ]  # fmt: skip
    headers = ("SEGMENT", "WRITES", "NODE", "SITE", "OPERATOR", "DISK", "SINCE", "UNTIL")
    print_table(
        headers, rows, empty="no segment is full yet; `nuage volume where` shows the copies"
    )
    if any(stay["lost_by"] for stay in listed(answer, "stays")):
        click.echo("lost is not erased: who has the disk has the bytes (`nuage iaas shred`)")
    for site in listed(answer, "silent"):
        click.echo(f"{site} did not answer: nothing is said of it")


def _end_of(stay: Row) -> str:
    if stay["lost_by"]:
        return f"lost with its disk, declared by {stay['lost_by']} at {day(stay['lost_s'])}"
    return day(stay["until_s"]) if stay["until_s"] else "no end told"


@volume_group.command("prove")
@click.argument("name")
@click.option(
    "-o",
    "--output",
    type=NEW_FILE,
    required=True,
    help="Where to write the proof.",
)
@click.option(
    "--since",
    type=FILE,
    default=None,
    help="An earlier proof: prove, too, that no ledger was rewritten since.",
)
@time_options
@iaas_option
@pass_session
def prove_volume(
    session: Session,
    name: str,
    output: Path,
    since: Path | None,
    begin: str,
    end: str,
    iaas: str,
) -> None:
    """Write what proves where a volume has been into a FILE; `nuage verify FILE` checks it.

    A long life takes several files: FILE, then NAME.2.json, and so on; each is verified by itself.
    """
    asked: dict[str, object] = _window(begin, end)
    if since is not None:
        asked["since"] = _covered_by(since)
    path = f"{session.volume_path(iaas, name)}/proof"
    for number, answer in enumerate(_pages(session, path, asked), start=1):
        file = output if number == 1 else output.with_suffix(f".{number}{output.suffix}")
        file.write_text(str(answer["document"]))
        if answered(session, answer):
            continue
        click.echo(f"{answer['receipt_count']} receipts with their proofs are in {file}")
        for site in listed(answer, "silent"):
            click.echo(f"{site} did not answer: the proof says nothing of it")


def _covered_by(proof: Path) -> str:
    from nuage.trust.verify import heads_of_proof

    try:
        heads = heads_of_proof(proof.read_bytes())
    except ValueError as error:
        raise InvalidRequest(
            f"{proof}: {error}", field="--since", hint="name a file of `nuage volume prove`"
        ) from error
    return ",".join(f"{site_id}:{size}" for site_id, size in sorted(heads.items()))


@click.command("verify")
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--keys",
    type=FILE,
    default=None,
    help="The sites' public keys, got on another way.",
)
@click.option(
    "--root",
    type=FILE,
    default=None,
    help="The federation's root certificate, got on another way.",
)
@click.option(
    "--since",
    type=FILE,
    default=None,
    help="An earlier proof, with which this one was made.",
)
def verify_command(path: Path, keys: Path | None, root: Path | None, since: Path | None) -> None:
    """Verify PATH offline: a volume's proof, a location ledger, or an exported audit log."""
    from nuage.trust.verify import (
        load_keys,
        told,
        told_proof,
        verify_audit,
        verify_ledger,
        verify_proof,
    )

    beside = path / "keys.json" if path.is_dir() else path.with_name("keys.json")
    known = load_keys(keys) if keys is not None else None
    if path.is_file() and _is_proof(path):
        proof = verify_proof(
            path.read_bytes(), keys=known, root_pem="" if root is None else root.read_text(),
            since=b"" if since is None else since.read_bytes(),
        )  # fmt: skip
        for line in told_proof(proof):
            click.echo(line)
        if proof.problems:
            raise CorruptData("the proof does not hold", where=str(path))
        if proof.outside:
            raise SovereigntyViolation(
                f"it was outside its contract: {'; '.join(proof.outside)}", rule="contract"
            )
        return
    if known is None and not beside.exists():
        raise InvalidRequest(
            f"{path} is no proof of a volume, and there is no {beside} to check it by",
            field="keys",
            hint="logs and ledgers come with a keys.json; or name the sites' keys: --keys FILE",
        )
    known = known if known is not None else load_keys(beside)
    report = verify_audit(path, known) if path.is_dir() else verify_ledger(path, known)
    for line in told(report):
        click.echo(line)
    if report.problems:
        raise CorruptData("it does not verify", where=str(path))


def _is_proof(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"{"


@iaas_group.command("check")
@click.argument("name")
@pass_session
def check_iaas(session: Session, name: str) -> None:
    """Look for any VM, copy or receipt of an IaaS that is outside its contract."""
    answer = row_of(session.client.get(f"/v1/iaas/{name}/check"))
    if answered(session, answer):
        return
    rows = [
        (row["kind"], row["id"], row["site"], row["rule"], row["reason"])
        for row in listed(answer, "findings")
    ]
    click.echo(
        f"{answer['vm_count']} VMs, {answer['copy_count']} copies and "
        f"{answer['receipt_count']} receipts were looked at"
    )
    print_table(
        ("WHAT", "ID", "SITE", "RULE", "REASON"), rows, empty="none is outside the contract"
    )
    for site in listed(answer, "silent"):
        click.echo(f"{site} did not answer: its receipts were not looked at")
    if rows:
        raise SovereigntyViolation(f"{len(rows)} are outside the contract", rule="contract")


COMMANDS = (verify_command,)
