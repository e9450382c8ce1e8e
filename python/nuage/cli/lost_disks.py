"""`nuage node disks`, `disk-lost` and `disk-erase`: disks that come, go and do not come back."""

import click

from nuage.cli.session import Session, pass_session
from nuage.cli.showing import Row, answered, day, print_table, row_of, rows_of
from nuage.cli.sites import node_group


@node_group.command("disks")
@click.argument("node")
@pass_session
def list_disks(session: Session, node: str) -> None:
    """Show the disks that IO-node NODE has, had and lost, and what lies on each by the ledgers."""
    answer = session.client.get(f"/v1/nodes/{node}/disks")
    if answered(session, answer):
        return
    rows = [
        (
            row["serial"],
            row["name"],
            _state(row),
            row["segment_count"] or "",
            row["volume_count"] or "",
            row["lost_count"] or "",
            row["reason"],
        )
        for row in rows_of(answer)
    ]
    headers = ("SERIAL", "DISK", "STATE", "SEGMENTS", "VOLUMES", "LOST", "WHY")
    print_table(headers, rows, empty="no disk is known")


def _state(row: Row) -> str:
    if not row["declared_by"]:
        return str(row["state"])
    return f"{row['state']}, declared by {row['declared_by']} at {day(row['declared_s'])}"


@node_group.command("disk-lost")
@click.argument("node")
@click.argument("serial")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def declare_lost(session: Session, node: str, serial: str, yes: bool) -> None:
    """Say that disk SERIAL of NODE is lost for good: the ledger tells what was lost with it.

    `nuage node disks NODE` shows the serials. It is refused while the disk answers. Copies are made
    anew without this word; it ends what the ledger says of the disk, and is kept in the audit log.
    A lost disk is not an erased one: whoever has it has what is on it.
    """
    if not yes:
        known = rows_of(session.client.get(f"/v1/nodes/{node}/disks"))
        row = next((row for row in known if row["serial"] == serial), None)
        if row is not None and not row["declared_by"]:
            click.echo(
                f"{row['segment_count']} segments of {row['volume_count']} volumes lay there: they"
                " are told as lost, and the disk is not used again unless it is erased"
            )
            click.confirm(f"is disk {serial} of {node} lost for good?", abort=True)
    answer = session.client.call("POST", f"/v1/nodes/{node}/disk-lost", {"serial": serial})
    if not answered(session, answer):
        by = row_of(answer)["declared_by"]
        click.echo(f"disk {serial} of {node} counts as lost, by the word of {by}")
        click.echo(f"how much of that the ledger has: `nuage node disks {node}`")


@node_group.command("disk-erase")
@click.argument("node")
@click.argument("serial")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def erase_disk(session: Session, node: str, serial: str, yes: bool) -> None:
    """Erase disk SERIAL of NODE, which was declared lost and is back.

    All that the product has on it goes, and the ledger tells so; once NODE's agent is started anew
    it is a new disk.
    """
    if not yes:
        click.confirm(f"erase all that lies on disk {serial} of {node}?", abort=True)
    answer = session.client.call("POST", f"/v1/nodes/{node}/disk-erase", {"serial": serial})
    if not answered(session, answer):
        click.echo(
            f"disk {serial} of {node} is erased as soon as {node} has it and nothing uses it"
        )
