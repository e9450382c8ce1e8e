"""`nuage iaas …`, `nuage segment …`, `nuage image …`, `nuage user …`, `nuage login`."""

import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import click

from nuage.api.client import Client
from nuage.api.profile import Profile, keep_profile, load_profiles
from nuage.cli.keyfile import make_key_file
from nuage.cli.paths import FILE, NEW_FILE
from nuage.cli.progress import bytes_shown
from nuage.cli.quotas import quota_option, quotas, told_quota
from nuage.cli.rates import disk_options, disk_parts, disk_rule, journal_options, journal_rule
from nuage.cli.session import Session, iaas_option, pass_session
from nuage.cli.showing import (
    Row,
    answered,
    day,
    inner,
    listed,
    print_table,
    row_of,
    rows_of,
    said,
    show,
)
from nuage.errors import InvalidRequest, NuageError
from nuage.units import format_size

ACK_POLICIES: Final = ("local", "metro", "any-2-of-3", "all")


@click.group("iaas")
def iaas_group() -> None:
    """Virtual clusters, each under its contract."""


@iaas_group.command("create")
@click.argument("name")
@click.option(
    "--data-in",
    "data_countries",
    multiple=True,
    metavar="CC",
    help="Countries where its data may rest (FR); repeat.",
)
@click.option(
    "--operator-from",
    "operator_countries",
    multiple=True,
    metavar="CC",
    help="Countries whose law its operators may answer to; repeat.",
)
@click.option("--at", "sites", multiple=True, metavar="SITE", help="Only these sites; repeat.")
@click.option("--tier", "tier_min", default=1, show_default=True, help="Least TIA-942 tier.")
@click.option("--copies", default=1, show_default=True, help="Copies of each volume.")
@click.option(
    "--copy-sites", default=0, help="Different sites they lie in.  [default: as many as copies]"
)
@click.option(
    "--ack",
    "ack_policy",
    type=click.Choice(ACK_POLICIES),
    default=None,
    help="When a write is acknowledged.  [default: all for 2 copies, any-2-of-3 for 3]",
)
@click.option(
    "--qos",
    "qos_class",
    type=click.Choice(["gold", "silver", "bronze"]),
    default="silver",
    show_default=True,
    help="Its class, for CPU, network and disks.",
)
@disk_options
@quota_option
@journal_options
@click.option(
    "--rpo",
    "rpo_s",
    default=0,
    metavar="SECONDS",
    help="No copy lacks older writes: writers wait for one that does.  [default: no bound]",
)
@click.option("--rpo-strict", is_flag=True, help="Writers wait also for a copy that is cut off.")
@click.option(
    "--when-cut-off",
    "cut_off",
    type=click.Choice(["stay", "fail-over"]),
    default="stay",
    show_default=True,
    help="What becomes of VMs whose site is cut off.",
)
@click.option("--encrypted", is_flag=True, help="Volumes lie encrypted under its own data key.")
@click.option(
    "--key-file",
    type=NEW_FILE,
    default=None,
    help="Encrypted, and only this key unlocks it; the file is made when absent. Keep it.",
)
@click.option("--owner", default="", help="Who the IaaS belongs to.  [default: you]")
@click.option(
    "--cidr", default="10.0.0.0/20", show_default=True, help="Addresses of its first segment."
)
@pass_session
def create_iaas(session: Session, /, name: str, **options: object) -> None:  # fmt: skip
    """Build an IaaS NAME under a contract; one that no set of sites can meet is refused."""
    copies = int(str(options["copies"]))
    contract = {
        "data_countries": options["data_countries"],
        "operator_countries": options["operator_countries"],
        "sites": options["sites"],
        "tier_min": options["tier_min"],
        "copies": copies,
        "copy_sites": int(str(options["copy_sites"])) or copies,
        "ack_policy": options["ack_policy"] or default_ack(copies),
        "qos_class": options["qos_class"],
        "quota": quotas(options["quota"]),
        "journal": journal_rule(options, {}),
        "rpo": {"seconds": options["rpo_s"], "strict": options["rpo_strict"]},
        "cut_off": options["cut_off"],
        "disk": disk_rule(options),
    }
    key_file = options["key_file"]
    body = {
        "name": name,
        "owner": options["owner"],
        "cidr": options["cidr"],
        "contract": contract,
        "encrypted": options["encrypted"],
        "tenant_key": make_key_file(key_file) if isinstance(key_file, Path) else "",
    }
    answer = row_of(session.client.call("POST", "/v1/iaas", body))
    if not answered(session, answer):
        click.echo(f"{answer['id']}  {name}, homed at {answer['site']}")
        click.echo(f"next: nuage user create NAME --grant iaas-admin@{name}")


@iaas_group.command("list")
@click.option("--deleted", is_flag=True, help="Those that were taken down, to prove their past.")
@pass_session
def list_iaas(session: Session, *, deleted: bool) -> None:
    """Show the IaaSes you may see."""
    if deleted:
        _list_past(session)
        return
    answer = session.client.get("/v1/iaas")
    rows = []
    for row in rows_of(answer):
        value = inner(row, "value")
        rows.append(
            (
                value["name"],
                row["id"],
                value["owner"],
                contract_line(inner(value, "contract")),
                row["site"],
            )
        )
    show(session, answer, ("NAME", "ID", "OWNER", "CONTRACT", "HOME"), rows, empty="no IaaS yet")


def _list_past(session: Session) -> None:
    answer = session.client.get("/v1/deleted-iaas")
    rows = [
        (row["name"], row["iaas_id"], row["owner"], day(row["deleted_s"]))
        for row in rows_of(answer)
    ]  # fmt: skip
    empty = "no IaaS that you may trace was taken down"
    show(session, answer, ("NAME", "ID", "OWNER", "TAKEN DOWN"), rows, empty=empty)


def default_ack(copies: int) -> str:
    """Return when a write of so many copies is acknowledged unless somebody says."""
    return {1: "local", 2: "all"}.get(copies, "any-2-of-3")


def _counted(count: object, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def contract_line(contract: dict[str, object]) -> str:
    """Say a contract in one line."""
    parts = []
    for key, word in (
        ("sites", "at"),
        ("data_countries", "data in"),
        ("operator_countries", "operators from"),
    ):
        values = listed(contract, key)
        if values:
            parts.append(f"{word} {'/'.join(map(str, values))}")
    parts.append(
        f"{_counted(contract['copies'], 'copy', 'copies')} in "
        f"{_counted(contract['copy_sites'], 'site', 'sites')} ({contract['ack_policy']})"
    )
    rpo = inner(contract, "rpo")
    if rpo["seconds"]:
        strict = ", strictly" if rpo["strict"] else ""
        parts.append(f"copies at most {rpo['seconds']} s behind{strict}")
    journal = inner(contract, "journal")
    hours = f"{int(str(journal['window_s'])) / 3600:g} h"
    bytes_kept = format_size(int(str(journal["window_bytes"])))
    strictly = ", strictly" if journal["strict"] else ""
    parts.append(f"history of {hours} or {bytes_kept}{strictly}")
    parts += [str(contract["qos_class"]), *disk_parts(inner(contract, "disk"))]
    if contract["cut_off"] == "fail-over":
        parts.append("fails over")
    return ", ".join(parts)


@iaas_group.command("show")
@click.argument("name")
@pass_session
def show_iaas(session: Session, name: str) -> None:
    """Show an IaaS: contract, segments, what is used of its quotas."""
    answer = row_of(session.client.get(f"/v1/iaas/{name}"))
    quota = session.client.get(f"/v1/iaas/{name}/quota")
    value = inner(answer, "value")
    key = row_of(session.client.get(f"/v1/iaas/{name}/key")) if value["encrypted"] else None
    if answered(session, {**answer, "quota": quota, "key": key}):
        return
    click.echo(f"{value['name']}  {answer['id']}  owner {value['owner']}  home {answer['site']}")
    click.echo(f"contract: {contract_line(inner(value, 'contract'))}")
    for line in () if key is None else _key_lines(name, key):
        click.echo(line)
    rows = [told_quota(row) for row in rows_of(quota)]
    print_table(("QUOTA OF", "USED", "LIMIT"), rows, empty="")


def _key_lines(name: str, key: Row) -> list[str]:
    """Say how the data key stands, and what somebody has to do about it."""
    if key["is_destroyed"]:
        return ["its data key was destroyed: what its volumes held can never be read"]
    held = key["holder"] == "tenant"
    lines = ["volumes lie encrypted under its own data key" + ", which its tenant holds" * held]
    if not key["is_unlocked"]:
        lines.append(f"locked at this site: nuage iaas unlock {name} --key-file …")
    if key["is_due"]:
        by_hand = f": nuage iaas rekey {name} --key-file …" if held else "; a new one is being made"
        lines.append(f"somebody who was revoked may know that key{by_hand}")
    return lines


@iaas_group.command("delete")
@click.argument("name")
@pass_session
def delete_iaas(session: Session, name: str) -> None:
    """Take an empty IaaS down."""
    answer = session.client.call("DELETE", f"/v1/iaas/{name}")
    said(session, answer, f"{name} is gone")


@click.group("segment")
def segment_group() -> None:
    """Layer-2 networks of an IaaS."""


@segment_group.command("list")
@iaas_option
@pass_session
def list_segments(session: Session, iaas: str) -> None:
    """Show an IaaS's networks."""
    answer = session.client.get(f"/v1/iaas/{session.require_iaas(iaas)}/segments")
    rows = [
        (
            (v := inner(row, "value"))["name"],
            row["id"],
            v["cidr"],
            v["gateway"],
            v["label"],
            v["mtu_bytes"],
            row["site"],
        )
        for row in rows_of(answer)
    ]
    show(
        session,
        answer,
        ("NAME", "ID", "CIDR", "GATEWAY", "LABEL", "MTU", "HOME"),
        rows,
        empty="no segment",
    )


@segment_group.command("create")
@click.argument("name")
@click.option("--cidr", default="10.0.0.0/20", show_default=True)
@iaas_option
@pass_session
def create_segment(session: Session, name: str, cidr: str, iaas: str) -> None:
    """Make a network NAME; tenants may use overlapping addresses."""
    path = f"/v1/iaas/{session.require_iaas(iaas)}/segments"
    answer = row_of(session.client.call("POST", path, {"name": name, "cidr": cidr}))
    said(session, answer, f"{answer['id']}  {name}")


@segment_group.command("delete")
@click.argument("name")
@iaas_option
@pass_session
def delete_segment(session: Session, name: str, iaas: str) -> None:
    """Delete the network NAME, in which no VM is."""
    path = f"/v1/iaas/{session.require_iaas(iaas)}/segments/{name}"
    said(session, session.client.call("DELETE", path), f"{name} is gone")


@click.group("image")
def image_group() -> None:
    """Disk images that VMs start from."""


@image_group.command("import")
@click.argument("name")
@click.argument("file", type=FILE)
@click.option(
    "--for",
    "iaas",
    default="",
    help="Only for this IaaS; left out, for all: a Nuage administrator's to do.",
)
@click.option("--sha256", default="", metavar="HEX", help="Refuse FILE unless this is its SHA-256.")
@click.option("--os", "os_distro", default="", help="For instance debian.")
@click.option("--os-version", default="", help="For instance 12.")
@pass_session
def import_image(session: Session, /, name: str, file: Path, **options: str) -> None:
    """Bring FILE (raw, qcow2, vmdk or vpc) in as image NAME."""
    client = session.client
    announced = row_of(client.call("POST", "/v1/images", {"name": name, **options}))
    with bytes_shown(f"image {name}", file.stat().st_size) as show_sent:
        path = f"/v1/images/{announced['id']}"
        try:
            answer = row_of(client.upload(f"{path}/data", file, show_sent))
        except KeyboardInterrupt:  # so that it can be given again under its name
            with suppress(NuageError):
                client.delete(path, iaas=options["iaas"])
            raise
    if answered(session, answer):
        return
    value = inner(answer, "value")
    held = format_size(int(str(value["size_bytes"])))
    click.echo(f"{answer['id']}  {name}  {held}  sha256 of {file.name} {value['source_sha256']}")


@image_group.command("list")
@iaas_option
@pass_session
def list_images(session: Session, iaas: str) -> None:
    """Show the images you may use."""
    answer = session.client.get("/v1/images", iaas=iaas)
    if answered(session, answer):
        return
    owners = {
        row["id"]: inner(row, "value")["name"] for row in rows_of(session.client.get("/v1/iaas"))
    }
    rows = [
        (
            (v := inner(row, "value"))["name"], row["id"], v["state"],
            format_size(int(str(v["size_bytes"]))), owners.get(v["iaas_id"], v["iaas_id"]) or "all",
            row["site"], v["failure"],
        )
        for row in rows_of(answer)
    ]  # fmt: skip
    show(
        session,
        answer,
        ("NAME", "ID", "STATE", "SIZE", "FOR", "HOME", "FAILURE"),
        rows,
        empty="no image yet",
    )


@image_group.command("delete")
@click.argument("name")
@click.option("--for", "iaas", default="", help="The IaaS it belongs to.")
@pass_session
def delete_image(session: Session, name: str, iaas: str) -> None:
    """Delete an image; volumes filled from it stay."""
    query = f"?iaas={iaas}" if iaas else ""
    answer = session.client.call("DELETE", f"/v1/images/{name}{query}")
    said(session, answer, f"{name} is gone")


@click.group("user")
def user_group() -> None:
    """Users and their roles."""


@user_group.command("create")
@click.argument("name")
@click.option(
    "--grant",
    "grants",
    multiple=True,
    metavar="ROLE@SCOPE",
    help="iaas-admin@NAME, operator@SITE, auditor, nuage-admin; repeat.",
)
@click.option(
    "--secret-file",
    type=FILE,
    default=None,
    help="Read the secret here instead of asking.",
)
@pass_session
def create_user(
    session: Session, name: str, grants: tuple[str, ...], secret_file: Path | None
) -> None:
    """Enter a user NAME with its roles."""
    secret = _read_secret(secret_file, confirm=True)
    body = {"name": name, "secret": secret, "grants": grants}
    answer = row_of(session.client.call("POST", "/v1/users", body))
    said(session, answer, f"{answer['user_id']}  {name}")


@user_group.command("list")
@pass_session
def list_users(session: Session) -> None:
    """Show users and their roles."""
    answer = session.client.get("/v1/users")
    names = _names_of_iaases(session)
    rows = [
        (
            row["name"], row["user_id"],
            _roles_text(row, names),
            "disabled" if row["disabled"] else "active", row["site"],
        )
        for row in rows_of(answer)
    ]  # fmt: skip
    show(session, answer, ("NAME", "ID", "ROLES", "STATE", "HOME"), rows, empty="no user")


@user_group.command("grant")
@click.argument("name")
@click.argument("roles", nargs=-1, required=True, metavar="ROLE[@SCOPE]...")
@click.option("--take", is_flag=True, help="Take the roles instead.")
@pass_session
def grant_roles(session: Session, name: str, roles: tuple[str, ...], take: bool) -> None:
    """Give the user NAME roles, or take them.

    A role is nuage-admin, operator@SITE, iaas-admin@IAAS, iaas-user@IAAS or auditor. What is taken
    ends at once; what is given counts from the user's next `nuage login`.
    """
    body = {"take" if take else "give": list(roles)}
    answer = row_of(session.client.call("POST", f"/v1/users/{name}/grants", body))
    if answered(session, answer):
        return
    click.echo(f"{name}: {_roles_text(answer, _names_of_iaases(session)) or 'no role'}")
    if not take:
        click.echo(f"counts from the next: nuage login {name}")


def _names_of_iaases(session: Session) -> dict[object, object]:
    answer = rows_of(session.client.get("/v1/iaas"))
    return {row["id"]: inner(row, "value")["name"] for row in answer}


def _roles_text(user: dict[str, object], names: dict[object, object]) -> str:
    return ", ".join(
        f"{grant['role']}@{names.get(grant['scope'], grant['scope'])}"
        for grant in listed(user, "grants")
    )


@user_group.command("disable")
@click.argument("name")
@click.option("--undo", is_flag=True, help="Let the user in again.")
@pass_session
def disable_user(session: Session, name: str, undo: bool) -> None:
    """Shut a user out; tokens given before are void as soon as sites hear it."""
    answer = session.client.call("PATCH", f"/v1/users/{name}", {"disabled": not undo})
    said(session, answer, f"{name} is {'active' if undo else 'disabled'}")


@user_group.command("secret")
@click.argument("name")
@click.option(
    "--secret-file",
    type=FILE,
    default=None,
    help="Read the new secret here instead of asking.",
)
@click.option(
    "--current-file",
    type=FILE,
    default=None,
    help="Read your current one here instead of asking.",
)
@pass_session
def replace_secret(
    session: Session, name: str, secret_file: Path | None, current_file: Path | None
) -> None:
    """Replace the secret of the user NAME: your own, or as administrator anybody's.

    All tokens given before are void.
    """
    is_own = name == session.profile.user
    current = _read_secret(current_file, "current secret") if is_own else ""
    secret = _read_secret(secret_file, "new secret", confirm=True)
    if is_own:
        body = {"current": current, "secret": secret}
        answer = session.client.call("POST", f"/v1/users/{name}/secret", body)
    else:
        answer = session.client.call("PATCH", f"/v1/users/{name}", {"secret": secret})
    said(session, answer, f"{name} has a new secret; next: nuage login {name}")


def _read_secret(file: Path | None, what: str = "secret", *, confirm: bool = False) -> str:
    if file is not None:
        return file.read_text().strip()
    if not sys.stdin.isatty():
        line = sys.stdin.readline().strip()
        if not line:
            raise InvalidRequest(
                f"standard input gives no {what}",
                field="secret",
                hint="--secret-file FILE reads it",
            )
        return line
    return str(click.prompt(what, hide_input=True, confirmation_prompt=confirm))


@click.command("login")
@click.argument("user")
@click.option(
    "--endpoint",
    default="",
    help="https://HOST:7400 or unix:/PATH.  [default: the current profile's]",
)
@click.option(
    "--ca-file",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    default=None,
    help="The federation's root certificate.  [default: as before at this endpoint]",
)
@click.option(
    "--profile", "name", default="", help="Keep it under this name.  [default: the user's]"
)
@click.option(
    "--secret-file",
    type=FILE,
    default=None,
    help="Read the secret here instead of asking.",
)
@click.option(
    "--iaas", default="", help="The IaaS that is meant when none is named.  [default: as before]"
)
@pass_session
def login_command(
    session: Session,
    user: str,
    endpoint: str,
    ca_file: str | None,
    name: str,
    secret_file: Path | None,
    iaas: str,
) -> None:
    """Get a token for USER and make it the current profile; a token lives an hour.

    The secret is asked for, or read from standard input where that is no terminal.
    """
    name = name or user
    target = endpoint or session.profile.endpoint
    there = {n: p for n, p in load_profiles().profiles.items() if p.endpoint == target}
    ca_file = ca_file or next((p.ca_file for p in there.values() if p.ca_file), "")
    iaas = iaas or (there[name].iaas if name in there else "")
    secret = _read_secret(secret_file)
    client = Client(target, ca_file=ca_file)
    client.token = token = client.log_in(user, secret)
    iaas = iaas or _only_iaas(client)
    profile = Profile(endpoint=target, user=user, token=token, ca_file=ca_file, iaas=iaas)
    keep_profile(name, profile)
    click.echo(f"{user} is logged in; profile {name}" + (f", IaaS {iaas}" if iaas else ""))


def _only_iaas(client: Client) -> str:
    """Return the name of the IaaS that this user sees, if it is but one."""
    names = [inner(row, "value")["name"] for row in rows_of(client.get("/v1/iaas"))]
    return str(names[0]) if len(names) == 1 else ""


COMMANDS = (iaas_group, segment_group, image_group, user_group, login_command)
