"""`nuage iaas set`: another quality for an IaaS that is there."""

import click

from nuage.cli.iaas import contract_line, iaas_group
from nuage.cli.quotas import quota_option, quotas
from nuage.cli.rates import disk_options, disk_rule
from nuage.cli.session import Session, pass_session
from nuage.cli.showing import answered, inner, row_of


@iaas_group.command("set")
@click.argument("name")
@click.option(
    "--qos",
    "qos_class",
    type=click.Choice(["gold", "silver", "bronze"]),
    default=None,
    help="Its class, for CPU, network and disks.",
)
@disk_options
@quota_option
@pass_session
def set_iaas(session: Session, /, name: str, **options: object) -> None:
    """Change the quality and the quotas of the contract of NAME; they hold at once.

    What is not given stays as it is; a rate of 0 takes one back.
    """
    known = row_of(session.client.get(f"/v1/iaas/{name}"))
    contract = inner(inner(known, "value"), "contract")
    if options["qos_class"] is not None:
        contract["qos_class"] = options["qos_class"]
    contract["quota"] = quotas(options["quota"], inner(contract, "quota"))
    contract["disk"] = disk_rule(options, inner(contract, "disk"))
    body = {"contract": contract}
    answer = row_of(session.client.call("PUT", f"/v1/iaas/{name}/contract", body))
    if not answered(session, answer):
        click.echo(f"{name}: {contract_line(inner(inner(answer, 'value'), 'contract'))}")
