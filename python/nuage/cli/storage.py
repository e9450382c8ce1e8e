"""`nuage volume …`: disks, their copies and their past."""

import time
from typing import cast

import click

from nuage.cli.energy import seconds
from nuage.cli.hosts import tell_access, tell_paths
from nuage.cli.moments import read_moment
from nuage.cli.rates import rate_line
from nuage.cli.session import Session, iaas_option, pass_session
from nuage.cli.showing import (
    Row,
    age,
    answered,
    day,
    inner,
    listed,
    print_facts,
    print_table,
    row_of,
    rows_of,
    said,
    show,
)
from nuage.cli.vms import size
from nuage.cli.volume_groups import (
    Instant,
    act_on_each,
    is_cloned,
    marked_instant,
    require_stopped,
)
from nuage.errors import InvalidRequest, NuageError
from nuage.units import SECTOR_BYTES, format_size


@click.group("volume")
def volume_group() -> None:
    """Disks of an IaaS, each a replicated journal."""


def _volumes(session: Session, iaas: str) -> str:
    return f"/v1/iaas/{session.require_iaas(iaas)}/volumes"


def _names_of_machines(session: Session, iaas: str) -> dict[object, object]:
    answer = rows_of(session.client.get(f"/v1/iaas/{session.require_iaas(iaas)}/vms"))
    return {row["id"]: inner(row, "value")["name"] for row in answer}


@volume_group.command("create")
@click.argument("name")
@click.argument("volume_size", metavar="SIZE")
@click.option(
    "--sector", default="512", type=click.Choice(["512", "4096"]), help="Bytes: 512e, or 4Kn."
)
@iaas_option
@pass_session
def create_volume(session: Session, name: str, volume_size: str, sector: str, iaas: str) -> None:
    """Make an empty volume NAME of SIZE (10G)."""
    body = {"name": name, "size_bytes": size(volume_size)}
    if int(sector) != SECTOR_BYTES:
        body["sector_bytes"] = int(sector)
    answer = row_of(session.client.call("POST", _volumes(session, iaas), body))
    said(session, answer, f"{answer['id']}  {name}")


@volume_group.command("list")
@click.option("--deleted", is_flag=True, help="Those that are no more, by what ledgers keep.")
@iaas_option
@pass_session
def list_volumes(session: Session, deleted: bool, iaas: str) -> None:
    """Show an IaaS's volumes."""
    if deleted:
        _list_deleted(session, iaas)
        return
    answer = session.client.get(_volumes(session, iaas))
    machines = _names_of_machines(session, iaas)
    rows = [
        (
            (v := inner(row, "value"))["name"], row["id"], v["state"],
            format_size(int(str(v["size_bytes"]))),
            machines.get(v["vm_id"], v["vm_id"] or ""), v["head"],
            ", ".join(str(r["node_id"]) for r in rows_of(v["replicas"])), v["failure"],
        )
        for row in rows_of(answer)
    ]  # fmt: skip
    headers = ("NAME", "ID", "STATE", "SIZE", "VM", "HEAD", "COPIES", "FAILURE")
    show(session, answer, headers, rows, empty="no volume yet")


def _list_deleted(session: Session, iaas: str) -> None:
    path = f"/v1/iaas/{session.require_iaas(iaas)}/deleted-volumes"
    answer = row_of(session.client.get(path))
    if answered(session, answer):
        return
    rows = [
        (
            row["volume"], row["name"], ", ".join(str(node) for node in listed(row, "nodes")),
            row["receipt_count"], row["segment_count"], day(row["last_s"]),
        )
        for row in rows_of(answer["volumes"])
    ]  # fmt: skip
    headers = ("ID", "NAME", "NODES", "RECEIPTS", "NOT YET ERASED", "LAST RECEIPT")
    print_table(headers, rows, empty="no ledger tells of a volume that is no more")
    for site in listed(answer, "silent"):
        click.echo(f"{site} did not answer: nothing is said of it")


@volume_group.command("show")
@click.argument("name")
@iaas_option
@pass_session
def show_volume(session: Session, name: str, iaas: str) -> None:
    """Show one volume: its state, its copies, and what to do where it needs somebody."""
    path = f"{_volumes(session, iaas)}/{name}"
    answer = row_of(session.client.get(path))
    standing = row_of(session.client.get(f"{path}/copies"))
    conditions = rows_of(session.client.get(f"{path}/conditions"))
    volume = inner(answer, "value")
    paths = rows_of(session.client.get(f"{path}/paths")) if volume["host"] else []
    told = {**answer, "standing": standing, "conditions": conditions, "paths": paths}
    if answered(session, told):
        return
    machines = _names_of_machines(session, iaas)
    facts = [("rpo", _rpo_line(standing)), ("disk", _share_line(standing))]
    print_facts([*_facts(answer, volume, machines), *facts])
    print_table(
        ("COPY", "SITE", "STATE", "BEHIND", "WRITES", "BYTES"),
        [_copy_row(copy) for copy in listed(standing, "copies")],
        empty="no copy yet",
    )
    if paths:
        tell_paths(paths)
    if standing["answering"] in ("slowed", "held"):
        click.echo(f"writes are {standing['answering']}: a copy is near its RPO or beyond it")
    for line in (*_waits(volume, standing), *_advice(volume)):
        click.echo(line)
    _print_conditions(session, conditions)
    for line in kept_aside(conditions, str(volume["name"])):
        click.echo(line)


def kept_aside(conditions: list[Row], name: str) -> list[str]:
    """Return which copies keep a part of their log aside, and how it goes."""
    lines = [
        f"{row['node_id']} keeps {format_size(int(str(row['quarantine_bytes'])))} of its log aside"
        for row in conditions
        if row.get("quarantine_bytes")
    ]
    if not lines:
        return []
    return [
        *lines,
        "It was refused by a newer head, or is damaged. It is erased once the copy was read whole",
        "without damage, while another copy is there; to have that now:",
        f"  nuage volume scrub {name}",
    ]


def _print_conditions(session: Session, conditions: list[Row]) -> None:
    rows = [
        (
            row["node_id"], _last_pass(row), row["found"], row["mended"],
            ", ".join(f"{first}+{count}" for first, count in _runs(row))
            or "none",
        )
        for row in conditions
    ]  # fmt: skip
    headers = ("COPY", "READ WHOLE", "DAMAGED", "MENDED", "LOST BLOCKS")
    show(session, conditions, headers, rows, empty="no copy yet")


def _runs(row: Row) -> list[tuple[int, int]]:
    return [(int(first), int(count)) for first, count in cast("list[list[int]]", row["lost"])]


def _last_pass(row: Row) -> str:
    if row["failure"]:
        return str(row["failure"])
    total = int(str(row["total_bytes"]))
    if total:
        return f"now, {100 * int(str(row['done_bytes'])) // total} %"
    return day(row["last_s"]) if row["last_s"] else "never"


@volume_group.command("scrub")
@click.argument("name")
@iaas_option
@pass_session
def scrub_volume(session: Session, name: str, iaas: str) -> None:
    """Have each copy of a volume read itself whole at once, and mend what has rotted.

    Copies do so each week by themselves; `nuage volume show` tells what was found.
    """
    answer = session.client.call("POST", f"{_volumes(session, iaas)}/{name}/scrub")
    if not answered(session, answer):
        _print_conditions(session, rows_of(answer))


def _rpo_line(standing: Row) -> str:
    """Say what the contract allows copies to lack, and which lack more."""
    rpo_s = float(str(standing["rpo_s"]))
    if not rpo_s:
        return ""
    beyond = [c["node"] for c in listed(standing, "copies") if float(str(c["lag_s"])) > rpo_s]
    told = f"no copy lacks writes older than {rpo_s:g} s"
    return told if not beyond else f"{told}: broken by {', '.join(map(str, beyond))}"


def _share_line(standing: Row) -> str:
    """Say which disk is under the head, and how much of it the IaaS may take."""
    if standing["share"] is None:
        return ""
    share = inner(standing, "share")
    most = rate_line(inner(share, "limits")) or "all there is"
    return f"{share['disk']}: the IaaS may take {most}" + (
        ", and wants more" * bool(share["waits"])
    )


def _copy_row(copy: Row) -> tuple[object, ...]:
    since = copy["silent_since_s"]
    state = copy["state"] if since is None else f"{copy['state']} since {day(since)}"
    if copy.get("rebuild"):
        total = int(str(inner(copy, "rebuild")["total_bytes"]))
        done = int(str(inner(copy, "rebuild")["done_bytes"]))
        state = f"{state}, {100 * done // total if total else 0} %"
    cells = (copy["node"], copy["site"], state)
    more = "≥ " * bool(copy["lag_is_at_least"])
    if not copy["lag_writes"]:
        return (*cells, "unknown" if more else "", "", "")
    size_shown = format_size(int(str(copy["lag_bytes"])))
    lag = (f"{copy['lag_s']:.1f} s", str(copy["lag_writes"]), size_shown)
    return (*cells, *(f"{more}{cell}" for cell in lag))


def _told_sectors(volume: Row) -> str:
    sector = volume.get("sector_bytes", SECTOR_BYTES)
    return "" if sector == SECTOR_BYTES else f"of {sector} bytes (4Kn)"


def _told_host(volume: Row) -> str:
    if not volume["host"]:
        return ""
    host = inner(volume, "host")
    return f"{host['initiator']}{', mutual CHAP' if host.get('mutual') else ''}"


def _facts(answer: Row, volume: Row, machines: dict[object, object]) -> list[tuple[str, object]]:
    return [
        ("volume", f"{volume['name']}  {answer['id']}"),
        ("state", volume["state"]),
        ("failure", volume["failure"]),
        ("size", format_size(int(str(volume["size_bytes"])))),
        ("sectors", _told_sectors(volume)),
        ("attached", machines.get(volume["vm_id"], volume["vm_id"])),
        ("host", _told_host(volume)),
        ("target", volume["iqn"] if volume["host"] else ""),
        ("head", f"{volume['head']}, epoch {volume['epoch']}"),
        ("without", ", ".join(str(node) for node in listed(volume, "without"))),
        ("held up", volume.get("held_up", "")),
        ("behind", ", ".join(str(node) for node in listed(volume, "catching_up"))),
        ("writes", f"acknowledged as {volume['ack_policy']}"),
        ("limits", rate_line(inner(volume, "limits"))),
    ]


def _waits(volume: Row, standing: Row) -> list[str]:
    """Say for which copies no write is acknowledged, and what somebody can do about it."""
    nodes = ", ".join(map(str, listed(standing, "waits_for")))
    if not nodes:
        return []
    return [
        f"Writes wait for the copy on {nodes}. They go on when it has everything, or without it:",
        f"  nuage volume degrade {volume['name']}",
    ]


def _advice(volume: Row) -> list[str]:
    """Return what somebody can do about a volume that does not serve."""
    name = volume["name"]
    if volume["state"] != "lost":
        return []
    return [
        "No disk has all that this volume held: nothing is served, lest an empty disk pass for it.",
        f"  a disk or node of {name} comes back     bring it back: the volume opens by itself",
        "  there is an export                      nuage volume import FILE NEW-NAME",
        f"  nothing of it is needed                 nuage volume delete {name}",
        f"  what is left, or nothing, will do       nuage volume accept-loss {name}",
    ]


@volume_group.command("where")
@click.argument("name")
@iaas_option
@pass_session
def where_volume(session: Session, name: str, iaas: str) -> None:
    """Say where each copy of a volume rests now, and under whose law."""
    answer = session.client.get(f"{_volumes(session, iaas)}/{name}/where")
    rows = [
        (
            row["node"], row["site"], row["place"], row["country"],
            f"{row['operator']} ({row['operator_country']})", "head" if row["is_head"] else "copy",
        )
        for row in rows_of(answer)
    ]  # fmt: skip
    show(
        session,
        answer,
        ("NODE", "SITE", "PLACE", "COUNTRY", "OPERATOR", "ROLE"),
        rows,
        empty="nowhere yet",
    )


@volume_group.command("history")
@click.argument("name")
@click.option("--after", default=0, help="Only what came after this write.")
@click.option("--count", default=20, show_default=True)
@iaas_option
@pass_session
def history_volume(session: Session, name: str, after: int, count: int, iaas: str) -> None:
    """Show what a volume's journal keeps: any write from the horizon on can be gone back to."""
    path = f"{_volumes(session, iaas)}/{name}/history"
    answer = row_of(session.client.get(path, after=after, count=count))
    if answered(session, answer):
        return
    kept = format_size(int(str(answer["history_bytes"])))
    click.echo(f"writes #{answer['horizon_sequence']} to #{answer['sequence']} are kept, {kept}")
    if answer["dropped_early_s"]:
        when, begin = day(answer["dropped_early_s"]), day(answer["kept_from_s"])
        click.echo(f"older ones left before their time, last at {when}: kept from {begin} on")
    rows = [
        (_clock(m["time_s"]), f"#{m['sequence']}", f"mark {m['name']}", "")
        for m in rows_of(answer["marks"])
    ]
    rows += [
        (
            _clock(g["time_s"]), f"#{g['first_sequence']}–{g['last_sequence']}",
            f"{g['blocks']} blocks", f"epoch {g['epoch']}, segment {g['segment']}",
        )
        for g in rows_of(answer["groups"])
    ]  # fmt: skip
    print_table(("TIME", "WRITES", "WHAT", "WHERE"), rows, empty="nothing was written yet")


def _clock(seconds: object) -> str:
    """Return the time of day, to the millisecond; of another day the date as well."""
    moment = float(str(seconds))
    if time.localtime(moment)[:3] != time.localtime()[:3]:
        return day(seconds)
    return time.strftime("%H:%M:%S", time.localtime(moment)) + f".{int(moment * 1000) % 1000:03d}"


@volume_group.command("mark")
@click.argument("name")
@click.argument("mark")
@click.option(
    "--with", "together_with", multiple=True, metavar="VOLUME", help="At the same instant; repeat."
)
@iaas_option
@pass_session
def mark_volume(
    session: Session, name: str, mark: str, together_with: tuple[str, ...], iaas: str
) -> None:
    """Name this instant MARK in the journal of a volume, or of several at once."""
    body = {"name": mark, "together_with": together_with}
    volumes = _volumes(session, iaas)
    answer = row_of(session.client.call("POST", f"{volumes}/{name}/marks", body))
    if answered(session, answer):
        return
    names = {row["id"]: inner(row, "value")["name"] for row in rows_of(session.client.get(volumes))}
    for volume, sequence in inner(answer, "sequences").items():
        click.echo(f"{names.get(volume, volume)}  #{sequence}  {mark}")


@volume_group.command("clone")
@click.argument("name")
@click.argument("new_name")
@click.option(
    "--at", "moment", default="", help="#NUMBER, @MARK, HH:MM:SS, '15min ago'.  [default: now]"
)
@click.option(
    "--with", "others", multiple=True, metavar="VOLUME=NEW", help="At the same @MARK; repeat."
)
@iaas_option
@pass_session
def clone_volume(
    session: Session, name: str, new_name: str, moment: str, others: tuple[str, ...], iaas: str
) -> None:
    """Make NEW_NAME from any moment of NAME's past, at once; of several at one instant."""
    path = _volumes(session, iaas)

    def clone(source: str, new: str, point: Row) -> None:
        body = {"name": new, **point}
        answer = row_of(session.client.call("POST", f"{path}/{source}/clone", body))
        said(session, answer, f"{answer['id']}  {new}")

    if not others:
        clone(name, new_name, read_moment(moment) if moment else {})
        return
    clones = {name: new_name, **dict(_pair(text) for text in others)}
    names = [name, *(_pair(text)[0] for text in others)]
    instants = marked_instant(session, path, names, moment)
    if len(set(clones.values())) < len(clones):
        raise InvalidRequest("two clones have one name", field="with")
    missing = [i for i in instants if not is_cloned(session, path, i, clones[i.volume])]
    act_on_each(missing, lambda i: clone(i.volume, clones[i.volume], {"sequence": i.sequence}))


def _pair(text: str) -> tuple[str, str]:
    source, _, new = text.partition("=")
    if not source or not new:
        raise InvalidRequest(f"{text!r} is not VOLUME=NEW", field="with")
    return source, new


@volume_group.command("at")
@click.argument("name")
@click.option("--time", "moment", default="", help="#NUMBER, @MARK, HH:MM:SS, '15min ago'.")
@click.option(
    "--keep", default="1h", show_default=True, help="For how long: 15min, 2h; 7d at most."
)
@click.option("--close", "view", default="", metavar="VIEW", help="End a view before its time.")
@click.option(
    "--with", "others", multiple=True, metavar="VOLUME", help="At the same @MARK; repeat."
)
@iaas_option
@pass_session
def view_volume(
    session: Session,
    name: str,
    moment: str,
    keep: str,
    view: str,
    others: tuple[str, ...],
    iaas: str,
) -> None:
    """Show NAME as it was, read-only, as an iSCSI disk of its own; several at one instant."""
    volumes = _volumes(session, iaas)
    if view:
        answer = session.client.delete(f"{volumes}/{name}/views", view=view)
        said(session, answer, f"{view} is closed")
        return
    kept_s = int(seconds(keep))
    if not others:
        body = {"seconds": kept_s, **(read_moment(moment) if moment else {})}
        answer = row_of(session.client.call("POST", f"{volumes}/{name}/views", body))
        _tell_views(session, [answer], answer)
        return
    instants = marked_instant(session, volumes, [name, *others], moment)
    opened = _open_views(session, volumes, instants, kept_s)
    _tell_views(session, opened, opened)


@volume_group.command("views")
@click.argument("name")
@iaas_option
@pass_session
def list_views(session: Session, name: str, iaas: str) -> None:
    """List the views of NAME that are open, and the history that is held back for them."""
    answer = row_of(session.client.get(f"{_volumes(session, iaas)}/{name}/views"))
    if answered(session, answer):
        return
    rows = [
        (
            view["view"], f"#{view['sequence']}", day(view["opened_s"]),
            "its head closes" if view["left_s"] is None else f"{age(view['left_s'])} from now",
            view["sessions"] or "",
        )
        for view in listed(answer, "views")
    ]  # fmt: skip
    headers = ("VIEW", "AFTER WRITE", "OPENED", "UNTIL", "SESSIONS")
    print_table(headers, rows, empty="no view is open")
    if held := int(str(answer["held_bytes"])):
        click.echo(f"{format_size(held)} of history that was due to leave is held back for them")


def _open_views(session: Session, volumes: str, instants: list[Instant], kept_s: int) -> list[Row]:
    """Open all views or none: what was opened before a refusal is closed again."""
    opened: list[tuple[str, Row]] = []

    def show_one(instant: Instant) -> None:
        body = {"seconds": kept_s, "sequence": instant.sequence}
        path = f"{volumes}/{instant.volume}/views"
        opened.append((path, row_of(session.client.call("POST", path, body))))

    try:
        act_on_each(instants, show_one)
    except NuageError:
        for path, row in opened:
            session.client.delete(path, view=row["view"])
            click.echo(f"{row['view']} is closed again", err=True)
        raise
    return [row for _, row in opened]


def _tell_views(session: Session, views: list[Row], answer: object) -> None:
    if answered(session, answer):
        return
    for view in views:
        until = day(view["until_s"])
        click.echo(f"{view['view']}  until {until}, after write #{view['sequence']}")
        click.echo(f"portal  {view['portal']}")
        click.echo(f"target  {view['iqn']}")
        click.echo(f"user    {view['user']}")
        click.echo(f"secret  {view['secret']}")


@volume_group.command("rollback")
@click.argument("name")
@click.argument("moment")
@click.option("--force", is_flag=True, help="Even while a VM uses it.")
@click.option(
    "--with", "others", multiple=True, metavar="VOLUME", help="To the same @MARK; repeat."
)
@iaas_option
@pass_session
def rollback_volume(
    session: Session, name: str, moment: str, force: bool, others: tuple[str, ...], iaas: str
) -> None:
    """Take a volume back to MOMENT (#NUMBER, @MARK, HH:MM:SS, '15min ago'); nothing is lost.

    Several go back to one instant, or none of them begins: a mark that was made of all at once.
    """
    path = _volumes(session, iaas)

    def roll_back(volume: str, point: Row) -> None:
        body = {**point, "force": force}
        answer = session.client.call("POST", f"{path}/{volume}/rollback", body)
        said(session, answer, f"{volume} is back at {moment}")

    if not others:
        roll_back(name, read_moment(moment))
        return
    instants = marked_instant(session, path, [name, *others], moment)
    if not force:
        require_stopped(session, path, [name, *others])
    act_on_each(instants, lambda instant: roll_back(instant.volume, {"sequence": instant.sequence}))


@volume_group.command("attach")
@click.argument("name")
@click.argument("vm", default="")
@click.option("--initiator", default="", metavar="IQN", help="To a host outside, by its name.")
@click.option("--mutual", is_flag=True, help="The target proves itself to the host, too.")
@iaas_option
@pass_session
def attach_volume(
    session: Session, name: str, vm: str, initiator: str, mutual: bool, iaas: str
) -> None:
    """Give a free volume to a VM, or to a host outside, which is told how to log in.

    A host has a path to each copy: it goes on by another when the head moves. Told again, the
    command says again how to log in.
    """
    path = f"{_volumes(session, iaas)}/{name}"
    if bool(vm) == bool(initiator):
        raise InvalidRequest("give a VM, or --initiator and a host's iSCSI name", field="vm")
    if mutual and not initiator:
        raise InvalidRequest("--mutual goes with --initiator", field="mutual")
    if initiator:
        body = {"initiator": initiator, **({"mutual": True} if mutual else {})}
        answer = session.client.call("POST", f"{path}/host", body)
        if not answered(session, answer):
            tell_access(row_of(answer))
        return
    session.client.call("POST", f"{path}/attach", {"vm": vm})
    click.echo(f"{name} is attached to {vm}")


@volume_group.command("detach")
@click.argument("name")
@iaas_option
@pass_session
def detach_volume(session: Session, name: str, iaas: str) -> None:
    """Take a volume from its VM or its host."""
    answer = session.client.call("POST", f"{_volumes(session, iaas)}/{name}/detach")
    said(session, answer, f"{name} is free")


@volume_group.command("grow")
@click.argument("name")
@click.argument("volume_size", metavar="SIZE")
@iaas_option
@pass_session
def grow_volume(session: Session, name: str, volume_size: str, iaas: str) -> None:
    """Make a volume larger."""
    body = {"size_bytes": size(volume_size)}
    answer = session.client.call("PUT", f"{_volumes(session, iaas)}/{name}/size", body)
    size_bytes = int(str(inner(row_of(answer), "value")["size_bytes"]))
    said(session, answer, f"{name} has {format_size(size_bytes)}")


@volume_group.command("set")
@click.argument("name")
@click.option("--iops-max", default=0, metavar="N", help="Operations a second.  [default: class's]")
@click.option(
    "--bandwidth-max", default="", metavar="SIZE", help="Bytes a second (64M).  [default: class's]"
)
@iaas_option
@pass_session
def set_volume(session: Session, name: str, iops_max: int, bandwidth_max: str, iaas: str) -> None:
    """Hold a volume to so many operations and bytes a second, within what its class allows."""
    bytes_per_s = size(bandwidth_max) if bandwidth_max else 0
    body = {"operations_per_s": iops_max, "bytes_per_s": bytes_per_s}
    answer = session.client.call("PUT", f"{_volumes(session, iaas)}/{name}/limits", body)
    asked = [f"{iops_max} operations"] if iops_max else []
    asked += [format_size(bytes_per_s)] if bytes_per_s else []
    told = f"at most {' and '.join(asked)} a second" if asked else "what its class allows"
    said(session, answer, f"{name} may take {told}")


@volume_group.command("delete")
@click.argument("name")
@iaas_option
@pass_session
def delete_volume(session: Session, name: str, iaas: str) -> None:
    """Delete a free volume and all its copies."""
    path = f"{_volumes(session, iaas)}/{name}"
    volume_id = row_of(session.client.get(path))["id"]
    answer = session.client.call("DELETE", path)
    told = f"{name} is gone; `nuage volume prove {volume_id} -o FILE` proves where it was"
    said(session, answer, told)


@volume_group.command("degrade")
@click.argument("name")
@click.option("--without", default="", metavar="NODE", help="Go on without the copy there.")
@iaas_option
@pass_session
def degrade_volume(session: Session, name: str, without: str, iaas: str) -> None:
    """Go on with the copies that are left, when a policy would wait for one that is lost.

    The decision is kept in the audit log. The copy is brought up to date once it answers.
    """
    path = f"{_volumes(session, iaas)}/{name}/degrade"
    answer = inner(row_of(session.client.call("POST", path, {"without": without})), "value")
    left_out = ", ".join(str(node) for node in listed(answer, "without"))
    said(session, answer, f"{name} goes on without {left_out}; its head is on {answer['head']}")


@volume_group.command("accept-loss")
@click.argument("name")
@click.confirmation_option(prompt="What no copy has is gone for good then. Go on?")
@iaas_option
@pass_session
def accept_loss(session: Session, name: str, iaas: str) -> None:
    """Go on with what the copies of a lost volume have, be it nothing.

    The decision is kept in the audit log.
    """
    path = f"{_volumes(session, iaas)}/{name}/accept-loss"
    answer = inner(row_of(session.client.call("POST", path)), "value")
    said(session, answer, f"{name} opens on {answer['head']} with what is left of it")


@volume_group.command("replace-copy")
@click.argument("name")
@click.argument("node")
@click.option("--to", default="", metavar="NODE", help="[default: the best that may]")
@iaas_option
@pass_session
def replace_copy(session: Session, name: str, node: str, to: str, iaas: str) -> None:
    """Have another node keep the copy on NODE, online; that one is erased at the end."""
    path = f"{_volumes(session, iaas)}/{name}/replace-copy"
    body = {"node": node, "to": to}
    answer = inner(row_of(session.client.call("POST", path, body)), "value")
    fresh = ", ".join(str(node) for node in listed(answer, "catching_up"))
    said(session, answer, f"a copy is made on {fresh}; that on {node} goes once it has everything")


@volume_group.command("move")
@click.argument("name")
@click.option("--to", required=True, metavar="NODE|SITE", help="Where one of its copies is.")
@iaas_option
@pass_session
def move_volume(session: Session, name: str, to: str, iaas: str) -> None:
    """Open a volume's head at another of its copies, online."""
    began_s = time.monotonic()
    path = f"{_volumes(session, iaas)}/{name}/move"
    answer = inner(row_of(session.client.call("POST", path, {"to": to})), "value")
    took_ms = (time.monotonic() - began_s) * 1000
    said(
        session, answer, f"{name} has its head on {answer['head']}; handed over in {took_ms:.0f} ms"
    )


COMMANDS = (volume_group,)
