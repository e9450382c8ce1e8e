"""`nuage iaas set`: another quality, other quotas, or more copies, for an IaaS that is there."""

import time
from typing import Final

import click

from nuage.cli.iaas import ACK_POLICIES, contract_line, default_ack, iaas_group
from nuage.cli.quotas import quota_option, quotas
from nuage.cli.rates import disk_options, disk_rule, journal_options, journal_rule
from nuage.cli.session import Session, pass_session
from nuage.cli.showing import Row, answered, inner, listed, row_of, rows_of
from nuage.units import format_size

POLL_S: Final = 1.0


@iaas_group.command("set")
@click.argument("name")
@click.option(
    "--qos",
    "qos_class",
    type=click.Choice(["gold", "silver", "bronze"]),
    default=None,
    help="Its class, for CPU, network and disks.",
)
@click.option("--copies", type=int, help="Copies of each volume: made, or erased, online.")
@click.option("--copy-sites", type=int, help="Different sites they lie in.")
@click.option(
    "--ack",
    "ack_policy",
    type=click.Choice(ACK_POLICIES),
    default=None,
    help="When a write is acknowledged.  [default: as before, or as `create` has it for so many]",
)
@journal_options
@disk_options
@quota_option
@click.option(
    "--wait/--no-wait", default=True, show_default=True, help="Until the copies are there."
)
@pass_session
def set_iaas(session: Session, /, name: str, wait: bool, **options: object) -> None:
    """Change what the contract of NAME promises; what exists is brought there.

    What is not given stays as it is; a rate of 0 takes one back. A change is
    refused if something lies or runs where it forbids it, or has no place for
    one more copy.
    """
    known = row_of(session.client.get(f"/v1/iaas/{name}"))
    contract = inner(inner(known, "value"), "contract")
    before = int(str(contract["copies"]))
    change_copies(contract, options)
    if options["qos_class"] is not None:
        contract["qos_class"] = options["qos_class"]
    contract["quota"] = quotas(options["quota"], inner(contract, "quota"))
    contract["journal"] = journal_rule(options, inner(contract, "journal"))
    contract["disk"] = disk_rule(options, inner(contract, "disk"))
    body = {"contract": contract}
    answer = row_of(session.client.call("PUT", f"/v1/iaas/{name}/contract", body))
    if answered(session, answer):
        return
    click.echo(f"{name}: {contract_line(inner(inner(answer, 'value'), 'contract'))}")
    copies = int(str(contract["copies"]))
    if wait and copies > before:
        _wait_for_copies(session, name, copies)


def change_copies(contract: Row, options: dict[str, object]) -> None:
    """Put the copies asked for into a contract, with what goes with so many."""
    if options["copies"] is not None:
        before, copies = int(str(contract["copies"])), int(str(options["copies"]))
        contract["copies"] = copies
        contract["copy_sites"] = min(int(str(contract["copy_sites"])), copies)
        if contract["ack_policy"] == default_ack(before):
            contract["ack_policy"] = default_ack(copies)
    for key in ("copy_sites", "ack_policy"):
        if options[key] is not None:
            contract[key] = options[key]


def _wait_for_copies(session: Session, name: str, copies: int) -> None:
    """Tell how far they are until all are there, be it hours: to stop waiting stops nothing."""
    path, told = f"/v1/iaas/{name}/volumes", ""
    while True:
        volumes = [inner(row, "value") for row in rows_of(session.client.get(path))]
        short = [volume for volume in volumes if is_short(volume, copies)]
        line = f"{len(volumes) - len(short)} of {len(volumes)} volumes have {copies} copies"
        if short:
            answer = row_of(session.client.get(f"{path}/{short[0]['name']}/copies"))
            left_bytes = sum(int(str(copy["lag_bytes"])) for copy in rows_of(answer["copies"]))
            left = f", {format_size(left_bytes)} to go" if left_bytes else ""
            line += f"; {short[0]['name']} is copied{left}"
        if line != told:
            click.echo(line)
        if not short:
            return
        told = line
        time.sleep(POLL_S)  # noqa: TID251 - a person waits


def is_short(volume: Row, copies: int) -> bool:
    """Tell whether a volume has fewer copies with everything than so many."""
    behind = {node for key in ("without", "catching_up", "leaving") for node in listed(volume, key)}
    return sum(place["node_id"] not in behind for place in rows_of(volume["replicas"])) < copies
