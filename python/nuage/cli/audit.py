"""`nuage audit …`: take the audit logs along, and verify them without the product."""

from pathlib import Path

import click

from nuage.cli.paths import FILE, FOLDER, NEW_FOLDER
from nuage.cli.session import Session, pass_session
from nuage.cli.showing import rows_of
from nuage.errors import CorruptData


@click.group("audit")
def audit_group() -> None:
    """Who did what: each site's hash-chained, signed log."""


@audit_group.command("export")
@click.argument("directory", type=NEW_FOLDER)
@pass_session
def export_audit(session: Session, directory: Path) -> None:
    """Copy the asked site's audit log and all sites' public keys into DIRECTORY."""
    client = session.client
    directory.mkdir(parents=True, exist_ok=True)
    names = client.get("/v1/audit")
    for name in map(str, rows_of(names)):
        (directory / name).write_bytes(client.download(f"/v1/audit/files/{name}"))
    (directory / "keys.json").write_bytes(client.download("/v1/audit/keys"))
    click.echo(f"{len(rows_of(names))} files and keys.json are in {directory}")


@audit_group.command("verify")
@click.argument("directory", type=FOLDER)
@click.option(
    "--keys",
    type=FILE,
    default=None,
    help="The sites' public keys.  [default: keys.json in DIRECTORY]",
)
def verify_command(directory: Path, keys: Path | None) -> None:
    """Verify an exported audit log offline: chain, seals, signatures."""
    from nuage.trust.verify import load_keys, told, verify_audit

    report = verify_audit(directory, load_keys(keys or directory / "keys.json"))
    for line in told(report):
        click.echo(line)
    if report.problems:
        raise CorruptData("the audit log does not verify", where=str(directory))


COMMANDS = (audit_group,)
