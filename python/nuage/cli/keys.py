"""`nuage iaas unlock|rekey|shred`: the data key of an IaaS, and the file that its tenant keeps."""

from pathlib import Path

import click

from nuage.cli.iaas import iaas_group
from nuage.cli.keyfile import read_key_file
from nuage.cli.paths import FILE
from nuage.cli.session import Session, pass_session
from nuage.cli.showing import answered, listed, row_of, said


@iaas_group.command("unlock")
@click.argument("name")
@click.option("--key-file", type=FILE, required=True)
@pass_session
def unlock_iaas(session: Session, name: str, key_file: Path) -> None:
    """Give NAME's key to the sites, in memory, until they restart."""
    body = {"tenant_key": read_key_file(key_file)}
    answer = row_of(session.client.call("POST", f"/v1/iaas/{name}/unlock", body))
    if answered(session, answer):
        return
    click.echo(f"{name} is unlocked at {', '.join(map(str, listed(answer, 'sites')))}")
    for site in listed(answer, "silent"):
        click.echo(f"{site} did not answer: it stays locked there")


@iaas_group.command("rekey")
@click.argument("name")
@click.option(
    "--key-file", type=FILE,
    help="The tenant's key, where only that unlocks NAME.",
)  # fmt: skip
@pass_session
def rekey_iaas(session: Session, name: str, key_file: Path | None) -> None:
    """Give NAME a new data key; running VMs go on, each volume's head opens once more.

    What was written before stays readable with the keys before, which are kept.
    """
    body = {"tenant_key": "" if key_file is None else read_key_file(key_file)}
    answer = row_of(session.client.call("POST", f"/v1/iaas/{name}/rekey", body))
    if answered(session, answer):
        return
    click.echo(f"{name} writes with a new data key as each head opens once more")
    for site in listed(answer, "silent"):
        click.echo(f"{site} did not answer: `nuage iaas unlock {name} --key-file …` once it does")


@iaas_group.command("shred")
@click.argument("name")
@click.option("--confirm", required=True, metavar="NAME", help="The name once more.")
@pass_session
def shred_iaas(session: Session, name: str, confirm: str) -> None:
    """Destroy the data key of NAME: what its volumes hold can never be read again.

    Journals stay, and with them the proofs of where the data lay.
    """
    answer = session.client.call("POST", f"/v1/iaas/{name}/shred", {"confirm": confirm})
    said(
        session,
        answer,
        f"the data of {name} is gone for good; `nuage iaas delete {name}` once it is empty",
    )
