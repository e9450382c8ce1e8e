"""`nuage site …`, `nuage node …`, `nuage rack …`, `nuage events`."""

import json
import time
from collections import deque
from collections.abc import Iterable
from typing import Final

import click

from nuage.cli.rates import rate_line
from nuage.cli.session import Session, pass_session
from nuage.cli.showing import (
    Row,
    age,
    answered,
    inner,
    listed,
    print_facts,
    print_table,
    row_of,
    rows_of,
    show,
)
from nuage.errors import Unavailable
from nuage.units import format_size

MISSED_LINES_MAX: Final = 100  # of the time in which the asked site was not heard
ASK_AGAIN_S: Final = 1.0
SITE_HEADERS: Final = (
    "SITE", "PLACE", "COUNTRY", "OPERATOR", "TIER", "REACHABLE", "AGE", "NODES", "VMS", "FREE",
    "PROMISED",
)  # fmt: skip
PROMISE_ALARMS: Final = {"low": "PROMISES LOW", "full": "PROMISES FULL"}


@click.group("site")
def site_group() -> None:
    """The datacenters of the federation."""


@site_group.command("list")
@pass_session
def list_sites(session: Session) -> None:
    """Show every datacenter, and how old what we know of it is."""
    answer = session.client.get("/v1/sites")
    show(
        session,
        answer,
        SITE_HEADERS,
        (
            (
                (d := inner(row, "datacenter"))["site_id"],
                d["place"],
                d["country"],
                f"{inner(d, 'operator')['name']} ({inner(d, 'operator')['country']})",
                d["tier"],
                "yes" if row["reachable"] else "no",
                age(row["age_s"]),
                f"{row['node_connected_count']}/{row['node_count']}",
                row["vm_running_count"],
                _of(row, "free_bytes", "disk_bytes"),
                _promised(row),
            )
            for row in rows_of(answer)
        ),
        empty="no site is known",
    )


@site_group.command("leases")
@pass_session
def list_leases(session: Session) -> None:
    """Show which datacenters hold their lease in the quorum, and what each owns there.

    Once a lease has run out, the majority may take over what the contracts let move.
    """
    answer = session.client.get("/v1/leases")
    rows = [
        (
            row["site_id"],
            "no" if row["remaining_s"] is None else "yes",
            "" if row["remaining_s"] is None else f"{float(str(row['remaining_s'])):.0f} s",
            ", ".join(f"{count} × {kind}" for kind, count in sorted(inner(row, "owned").items())),
        )
        for row in rows_of(answer)
    ]
    headers = ("SITE", "HOLDS ITS LEASE", "FOR ANOTHER", "OWNS")
    show(session, answer, headers, rows, empty="no site is known")


@click.group("node")
def node_group() -> None:
    """The machines of the federation."""


@node_group.command("list")
@click.option("--at", "at_site", default="", help="Only the nodes of this site.")
@pass_session
def list_nodes(session: Session, at_site: str) -> None:
    """Show nodes and their last facts."""
    answer = session.client.get("/v1/nodes", site=at_site)
    rows = []
    for row in rows_of(answer):
        node = inner(row, "node")
        status = inner(row, "status") if row["status"] else {}
        total = int(str(status.get("total_bytes", 0)))
        space = f"{format_size(int(str(status['free_bytes'])))} free" if total else ""
        if promised := _promised(row):
            space = f"{space}, {promised} promised"
        if status.get("alarm"):
            space = f"{space}, {str(status['alarm']).upper()}"
        if status.get("promise_alarm"):
            space = f"{space}, {PROMISE_ALARMS[str(status['promise_alarm'])]}"
        rows.append(
            (
                node["name"],
                node["site_id"],
                ", ".join(str(role) for role in listed(node, "roles")),
                _service(row),
                _connected(status),
                row["vm_count"] or "",
                status.get("accelerator", "") or space,
                ", ".join(str(o) for o in listed(status, "orphans")),
            )
        )
    headers = ("NODE", "SITE", "ROLE", "SERVICE", "CONNECTED", "VMS", "HAS", "ORPHANS")
    show(session, answer, headers, rows, empty="no node is known")
    if not session.as_json:
        for line in behind(rows_of(answer)):
            click.echo(line)


@node_group.command("show")
@click.argument("node")
@pass_session
def show_node(session: Session, node: str) -> None:
    """Show a node: what it is, its disks, and who has which share of them."""
    answer = row_of(session.client.get(f"/v1/nodes/{node}"))
    if answered(session, answer):
        return
    value = inner(answer, "node")
    status = inner(answer, "status") if answer["status"] else {}
    print_facts([
        ("node", value["name"]),
        ("site", f"{value['site_id']}, rack {value['rack_id']}"),
        ("role", ", ".join(str(role) for role in listed(value, "roles"))),
        ("address", value["address"]),
        ("service", _service(answer)),
        ("connected", _connected(status)),
        ("version", value.get("version", "")),
        ("VMs", answer["vm_count"] or ""),
        ("orphans", ", ".join(str(orphan) for orphan in listed(status, "orphans"))),
        ("unreadable", ", ".join(str(vm) for vm in listed(status, "unreadable"))),
        ("copies", answer["copy_count"] or ""),
        ("disks", _disks_line(status)),
        ("promised", _promised_line(answer, status)),
    ])  # fmt: skip
    disks = [_disk_row(disk) for disk in listed(status, "disks")]
    if disks:
        headers = ("DISK", "CLASS", "FREE", "SIZE", "DOES", "KEEPS", "ALARM")
        print_table(headers, disks, empty="")
    if answer.get("held_up"):
        rows = [(row["volume"], row["iaas"], row["reason"]) for row in listed(answer, "held_up")]
        print_table(("HELD UP", "IAAS", "WHY"), rows, empty="")
    if answer.get("silent"):
        _print_silence(inner(answer, "silent"))
    shares = [_share_row(share, inner(answer, "names")) for share in listed(answer, "shares")]
    if shares:
        headers = ("DISK", "IAAS", "WEIGHT", "RESERVED", "MAY TAKE", "TAKES", "WANTS MORE")
        print_table(headers, shares, empty="")


def behind(nodes: Iterable[Row]) -> list[str]:
    """Return a line for each node whose agent or storage daemons are older than another's."""
    found: dict[str, tuple[str, list[str]]] = {}
    for row in nodes:
        status = inner(row, "status") if row["status"] else {}
        kept = inner(status, "daemon_versions") if status.get("daemon_versions") else {}
        node = inner(row, "node")
        agent = str(node.get("version", ""))
        found[str(node["name"])] = agent, [str(version) for version in kept.values()]
    told = {version for agent, daemons in found.values() for version in (agent, *daemons)}
    newest = max(told, key=_order, default="")
    lines = []
    for name, (agent, daemons) in found.items():
        if agent != newest:
            lines.append(f"{name}: its agent is of {_named(agent)}, not {newest}: restart it")
        if older := sorted({version for version in daemons if version != newest}):
            of = ", ".join(map(_named, older))
            lines.append(f"{name}: storage daemons of {of}, not {newest}: drain or reboot it")
    return lines


def _named(version: str) -> str:
    return version or "a version before 0.2"


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _disk_row(disk: Row) -> tuple[object, ...]:
    return (
        disk["name"],
        disk["disk_class"],
        format_size(int(str(disk["free_bytes"]))),
        format_size(int(str(disk["total_bytes"]))),
        rate_line(inner(disk, "capacity")),
        "journals, old data of faster disks" if disk["for_bases"] else "journals",
        str(disk["alarm"]).upper(),
    )


def _share_row(share: Row, names: Row) -> tuple[object, ...]:
    rule = inner(share, "rule")
    taken = {kind: int(float(str(share[kind]))) for kind in ("operations_per_s", "bytes_per_s")}
    return (
        share["disk"],
        names.get(str(share["iaas_id"]), share["iaas_id"]),
        rule["weight"],
        rate_line(inner(rule, "reservation")),
        rate_line(inner(share, "limits")) or "all there is",
        rate_line(dict(taken)),
        "yes" if share["waits"] else "",
    )


def _connected(status: dict[str, object]) -> str:
    if status.get("restarting"):
        return "agent restarts"
    return "yes" if status.get("connected") else "no"


def _of(row: Row, part: str, whole: str) -> str:
    """Return ``900 GiB of 1 TiB``; "": there is no whole."""
    part_bytes, whole_bytes = (int(str(row.get(key, 0))) for key in (part, whole))
    return f"{format_size(part_bytes)} of {format_size(whole_bytes)}" if whole_bytes else ""


def _promised(row: Row) -> str:
    return _of(row, "promised_bytes", "promise_bytes_max")


def _disks_line(status: Row) -> str:
    total_bytes = int(str(status.get("total_bytes", 0)))
    free_bytes = int(str(status.get("free_bytes", 0)))
    if not total_bytes:
        return ""
    return f"{format_size(total_bytes)}, {format_size(total_bytes - free_bytes)} used"


def _promised_line(answer: Row, status: Row) -> str:
    told = _promised(answer)
    if not told:
        return ""
    alarm = PROMISE_ALARMS.get(str(status.get("promise_alarm", "")), "")
    ratio = float(str(status.get("overcommit_ratio", 0.0)))
    return f"{told} (disks × {ratio:g})" + (f", {alarm}" if alarm else "")


def _print_silence(silent: Row) -> None:
    """Print what waits for a node that does not answer, and what ends that."""
    rows = [
        (row["volume"], row["iaas"], row["other_copies"], row["help"])
        for row in listed(silent, "at_stake")
    ]
    if rows:
        print_table(("STANDS STILL", "IAAS", "OTHER COPIES", "WHAT HELPS"), rows, empty="")
    click.echo(f"Volumes that go on from other copies: {silent['going_on_count']}.")
    click.echo(f"Copies are made anew elsewhere {silent['made_anew']}.")
    if silent["unerased"]:
        names = ", ".join(str(name) for name in listed(silent, "unerased"))
        click.echo(f"To be erased here, and nobody knows whether they were: {names}")


def _service(row: Row) -> str:
    node = inner(row, "node")
    if node.get("draining"):
        left = int(str(row.get("copy_count", 0)))
        copies = "1 copy" if left == 1 else f"{left} copies"
        held = int(str(row.get("held_up_count", 0)))
        stuck = f" ({held} held up)" * bool(held)
        return f"draining, {copies} left{stuck}" if left else "drained"
    if not node["maintenance"]:
        return "in service"
    return "revoked" if node["revoked_generation"] else "maintenance"


@node_group.command("drain")
@click.argument("node")
@pass_session
def drain_node(session: Session, node: str) -> None:
    """Move all copies of volumes off an IO-node, online, one by one; `undrain` takes it back.

    Refused where a contract leaves a copy no other place.
    """
    _set_draining(session, node, draining=True)


@node_group.command("undrain")
@click.argument("node")
@pass_session
def undrain_node(session: Session, node: str) -> None:
    """Let an IO-node take copies again; what has moved stays where it is."""
    _set_draining(session, node, draining=False)


def _set_draining(session: Session, node: str, *, draining: bool) -> None:
    path = f"/v1/nodes/{node}/draining"
    answer = session.client.call("PUT", path, {"draining": draining})
    if answered(session, answer):
        return
    if draining:
        click.echo(f"{node} is emptied; `nuage node list` shows how many copies are left")
    else:
        click.echo(f"{node} takes copies again")


@node_group.command("maintenance")
@click.argument("node")
@click.argument("state", type=click.Choice(["on", "off"]))
@pass_session
def maintenance(session: Session, node: str, state: str) -> None:
    """Take a node out of service (on), or back (off)."""
    body = {"maintenance": state == "on"}
    answer = session.client.call("PUT", f"/v1/nodes/{node}/maintenance", body)
    if not answered(session, answer):
        click.echo(f"{node}: maintenance {state}")


@node_group.command("revoke")
@click.argument("node")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def revoke_node(session: Session, node: str, yes: bool) -> None:
    """Believe nothing any more that NODE shows: it was stolen, or has left.

    Its channels close at every site; what ran on it runs elsewhere once it is confirmed off. It may
    join again with a new token (`nuage invite-node`), and is in maintenance then.
    """
    if not yes:
        click.confirm(f"revoke {node}, and lose touch with what runs on it?", abort=True)
    _revoke(session, f"/v1/nodes/{node}", node)


@site_group.command("revoke")
@click.argument("site")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_session
def revoke_site(session: Session, site: str, yes: bool) -> None:
    """Believe nothing any more that the datacenter SITE shows; its member leaves the quorum.

    Takes the federation's root key, at the site where the federation was founded.
    """
    if not yes:
        click.confirm(f"revoke {site} with everything in it?", abort=True)
    _revoke(session, f"/v1/sites/{site}", site)


@site_group.command("rotate-keys")
@click.argument("site")
@pass_session
def rotate_keys(session: Session, site: str) -> None:
    """Replace the keys by which the fabric's switches know each other, begun at SITE.

    Every revocation does so by itself. Nothing is interrupted: new keys sign after some seconds,
    and old ones are accepted for two minutes.
    """
    answer = session.client.call("POST", f"/v1/sites/{site}/rotate-keys", {})
    if not answered(session, answer):
        click.echo("the fabric's keys roll: the old ones end within two minutes")


def _revoke(session: Session, path: str, name: str) -> None:
    answer = session.client.call("POST", f"{path}/revoke", {})
    if not answered(session, answer):
        click.echo(f"{name} is revoked")


@click.group("rack")
def rack_group() -> None:
    """The racks, Nuage's unit of administration."""


@rack_group.command("list")
@click.option("--at", "at_site", default="", help="Only the racks of this site.")
@pass_session
def list_racks(session: Session, at_site: str) -> None:
    """Show racks and what is in them."""
    answer = session.client.get("/v1/racks", site=at_site)
    rows = [
        (
            inner(r, "rack")["rack_id"],
            inner(r, "rack")["site_id"],
            ", ".join(map(str, listed(r, "nodes"))),
        )
        for r in rows_of(answer)
    ]
    show(session, answer, ("RACK", "SITE", "NODES"), rows, empty="no rack is known")


@click.command("events")
@click.option("--follow", "-f", is_flag=True, help="Go on as things happen.")
@click.option("--last", default=20, show_default=True, help="How many past lines first.")
@pass_session
def events_command(session: Session, follow: bool, last: int) -> None:
    """Show what happens in the federation."""
    if not follow:
        for line in rows_of(session.client.get("/v1/events", follow="0", last=last)):
            _print_event(session, line)
        return
    _follow_events(session, last)


def _follow_events(session: Session, last: int) -> None:
    """Print what happens until somebody interrupts; a site that falls silent is asked again."""
    shown: deque[tuple[object, ...]] = deque(maxlen=MISSED_LINES_MAX)
    began = False
    while True:
        try:
            for item in session.client.stream(f"/v1/events?last={last}"):
                began = True
                line = row_of(item)
                if (key := (line["site"], line["at_s"], line["text"])) not in shown:
                    shown.append(key)
                    _print_event(session, line)
        except Unavailable as error:
            if not began:
                raise
            click.echo(f"{error.message}; asking again", err=True)
        last = MISSED_LINES_MAX
        time.sleep(ASK_AGAIN_S)  # noqa: TID251 - a person waits


def _print_event(session: Session, line: dict[str, object]) -> None:
    if session.as_json:
        click.echo(json.dumps(line, ensure_ascii=False))
        return
    moment = time.strftime("%H:%M:%S", time.localtime(float(str(line["at_s"]))))
    click.echo(f"{moment}  {line['site']!s:<10} {line['kind']!s:<14} {line['text']}")


COMMANDS = (site_group, node_group, rack_group, events_command)
