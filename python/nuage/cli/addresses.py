"""`nuage pool …`, `nuage address …`: public addresses and who has them."""

import click

from nuage.cli.session import Session, iaas_option, pass_session
from nuage.cli.showing import inner, row_of, rows_of, said, show


@click.group("pool")
def pool_group() -> None:
    """Pools of public addresses, which operators define."""


@pool_group.command("list")
@pass_session
def list_pools(session: Session) -> None:
    """List the pools."""
    answer = session.client.get("/v1/address-pools")
    show(
        session,
        answer,
        ("POOL", "PREFIX", "GIVEN OUT BY", "ID"),
        (
            ((pool := inner(row, "value"))["name"], pool["prefix"], row["site"], row["id"])
            for row in rows_of(answer)
        ),
        empty="there is no pool: `nuage pool create` defines one",
    )


@pool_group.command("create")
@click.argument("name")
@click.argument("prefix")
@click.option("--site", required=True, help="The site that gives its addresses out.")
@pass_session
def create_pool(session: Session, name: str, prefix: str, site: str) -> None:
    """Define pool NAME of PREFIX, which providers route to the federation's edges."""
    body = {"name": name, "prefix": prefix, "site": site}
    answer = row_of(session.client.call("POST", "/v1/address-pools", body))
    said(session, answer, f"{answer['id']}  {name}  {prefix}")


@pool_group.command("delete")
@click.argument("name")
@pass_session
def delete_pool(session: Session, name: str) -> None:
    """Delete pool NAME, of which nothing is given out."""
    answer = session.client.call("DELETE", f"/v1/address-pools/{name}")
    said(session, answer, f"{name} is gone")


@click.group("address")
def address_group() -> None:
    """Public addresses: each goes wherever its VM goes."""


def _path(session: Session, iaas: str, address: str = "", more: str = "") -> str:
    base = f"/v1/iaas/{session.require_iaas(iaas)}/addresses"
    return f"{base}/{address}{more}" if address else base


@address_group.command("list")
@iaas_option
@pass_session
def list_addresses(session: Session, iaas: str) -> None:
    """List the IaaS's public addresses and where they are."""
    answer = session.client.get(_path(session, iaas))
    show(
        session,
        answer,
        ("ADDRESS", "POOL", "VM", "SITE", "NODE"),
        (
            (row["address"], row["pool"], row["vm"] or "none", row["vm_site"], row["vm_node"])
            for row in rows_of(answer)
        ),
        empty="no public address: `nuage address create` takes one out of a pool",
    )


@address_group.command("create")
@click.option("--pool", default="", help="Out of this pool.  [default: the only one]")
@iaas_option
@pass_session
def create_address(session: Session, pool: str, iaas: str) -> None:
    """Take a public address out of a pool."""
    answer = row_of(session.client.call("POST", _path(session, iaas), {"pool": pool}))
    said(session, answer, str(answer["id"]))


@address_group.command("attach")
@click.argument("address")
@click.argument("vm")
@iaas_option
@pass_session
def attach_address(session: Session, address: str, vm: str, iaas: str) -> None:
    """Attach ADDRESS to VM; inside the guest, add it to the network card."""
    answer = session.client.call("PUT", _path(session, iaas, address, "/port"), {"vm": vm})
    said(session, answer, f"{address} is {vm}'s; in the guest: ip addr add {address}/32 dev eth0")


@address_group.command("detach")
@click.argument("address")
@iaas_option
@pass_session
def detach_address(session: Session, address: str, iaas: str) -> None:
    """Take ADDRESS off its VM; the IaaS keeps it."""
    answer = session.client.call("DELETE", _path(session, iaas, address, "/port"))
    said(session, answer, f"{address} is attached to nothing")


@address_group.command("delete")
@click.argument("address")
@iaas_option
@pass_session
def delete_address(session: Session, address: str, iaas: str) -> None:
    """Give ADDRESS back to its pool."""
    answer = session.client.call("DELETE", _path(session, iaas, address))
    said(session, answer, f"{address} is free again")


COMMANDS = (pool_group, address_group)
