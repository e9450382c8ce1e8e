"""`nuage fabric …`: neighbours, nicknames, trees, and the way a frame takes; security groups."""

import click

from nuage.cli.session import Session, iaas_option, pass_session
from nuage.cli.showing import answered, inner, print_facts, row_of, rows_of, said, show
from nuage.errors import NotFound

Row = dict[str, object]


@click.group("fabric")
def fabric_group() -> None:
    """The network between nodes and sites: TRILL, and LISP for public addresses."""


@fabric_group.command("show")
@click.argument("node")
@click.option("--stations", is_flag=True, help="Also list where each MAC is.")
@click.option("--news", is_flag=True, help="Also tell what happened lately, by NODE's clock.")
@pass_session
def show_fabric(session: Session, node: str, stations: bool, news: bool) -> None:
    """Show the fabric as NODE (a V-node or an edge) sees it.

    Plane `software` is slow, and knows no public addresses: `--news` tells why NODE's kernel does
    not forward. Once that is mended, start its agent anew.
    """
    answer = row_of(session.client.get(f"/v1/fabric/{node}"))
    if answered(session, answer):
        return
    click.echo(
        f"{answer['node_id']}  nickname {_nickname(answer['nickname'])}  plane {answer['plane']}  "
        f"tree from {answer['tree_root'] or 'nobody yet'}\n"
    )
    show(
        session,
        answer,
        ("TRUNK", "TO", "SITE", "OVER", "DRIVER", "STATE", "BFD", "METRIC", "MTU", "FAILURE"),
        (
            (
                t["interface"],
                t["to_node"],
                t["to_site"],
                t["provider"] or "rack",
                t["driver"],
                "up" if t["state"] == "report" else t["state"],  # RFC 7177's word
                t["bfd"],
                t["metric"],
                t["mtu_bytes"],
                t["failure"],
            )
            for t in rows_of(answer["trunks"])
        ),
        empty="it has no trunk",
    )
    click.echo()
    show(
        session,
        answer,
        ("RBRIDGE", "NICKNAME", "REACHABLE", "DISTANCE", "PARENT IN TREE", "SEGMENTS"),
        (
            (
                r["node_id"],
                _nickname(r["nickname"]),
                "yes" if r["reachable"] else "no",
                "" if r["distance"] is None else r["distance"],
                r["tree_parent"],
                r["label_count"],
            )
            for r in rows_of(answer["rbridges"])
        ),
        empty="it knows nobody",
    )
    _tell_counters(answer)
    _show_mappings(session, answer)
    if stations:
        click.echo()
        _show_stations(session, answer)
    if news:
        click.echo("\n" + ("\n".join(map(str, _listed(answer["news"]))) or "nothing happened"))


MOVED = ("ingress", "transit", "egress", "flooded")


def _tell_counters(answer: Row) -> None:
    counters = inner(answer, "counters")
    click.echo("\nframes: " + ", ".join(f"{name} {counters.get(name, 0)}" for name in MOVED))
    control = [f"{name} {count}" for name, count in counters.items() if name not in MOVED and count]
    if control:
        click.echo("control: " + ", ".join(control))
    drops = inner(answer, "drops")
    if drops:
        click.echo("dropped: " + ", ".join(f"{cause} {count}" for cause, count in drops.items()))


def _show_mappings(session: Session, answer: Row) -> None:
    click.echo(f"public addresses: {answer['lisp']}")
    mappings = rows_of(answer["mappings"])
    if not mappings:
        return
    show(
        session,
        answer,
        ("ADDRESS", "HERE AS", "VERSION", "WAYS (PRIORITY)", "WHY"),
        (
            (
                m["prefix"],
                m["role"],
                m["version"] or "",
                ", ".join(_way(rloc) for rloc in rows_of(m["rlocs"])),
                m["why"],
            )
            for m in mappings
        ),
        empty="",
    )


def _way(rloc: Row) -> str:
    return f"{rloc['address']} ({rloc['priority']})" + ("" if rloc["up"] else " down")


def _show_stations(session: Session, answer: Row) -> None:
    names = {r["nickname"]: r["node_id"] for r in rows_of(answer["rbridges"])}
    show(
        session,
        answer,
        ("SEGMENT", "MAC", "AT", "BY"),
        (
            (
                s["label"],
                s["mac"],
                f"port {s['port']}" if s["port"] else names.get(s["nickname"], s["nickname"]),
                "frames" if s["learned"] else "directory",
            )
            for s in rows_of(answer["stations"])
        ),
        empty="it knows no station",
    )
    untold = int(str(answer["station_count"])) - len(rows_of(answer["stations"]))
    if untold > 0:
        click.echo(f"and {untold} more, which are not listed")


def _nickname(number: object) -> str:
    return f"{int(str(number)):#06x}" if number else "none"


def _path(session: Session, iaas: str, source: str, destination: str, *, traced: bool) -> None:
    answer = row_of(
        session.client.get(
            f"/v1/iaas/{session.require_iaas(iaas)}/path",
            source=source,
            destination=destination,
            traced="true" if traced else "false",
        )
    )
    if answered(session, answer):
        return
    found = inner(answer, "answer")
    node = answer["destination_node"]
    click.echo(
        f"{answer['source']} on {answer['source_node']} → {answer['destination']}"
        + (f" on {node}" if node else "")
        + (f", segment {answer['segment']}" if answer["segment"] else "")
        + f"\nwhy: {found['reason']}"
        + "".join(f"\nnote: {note}" for note in _listed(answer["notes"]))
    )
    show(
        session,
        answer,
        ("HOP", "RBRIDGE", "COST LEFT", "NEXT (EQUAL CHOICES)", *(("ANSWER",) if traced else ())),
        (
            (
                position,
                step["node_id"],
                step["distance"],
                " | ".join(str(choice) for choice in _listed(step["choices"])),
                *((_answer(step, position),) if traced else ()),
            )
            for position, step in enumerate(rows_of(found["steps"]))
        ),
        empty="no way",
    )


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []


def _answer(step: Row, position: int) -> str:
    if position == 0:
        return ""
    if step["answer_ms"] is None:
        return "no answer"
    return f"{step['answer_ms']} ms from {str(step['by_port']).partition(':')[0]}"


@fabric_group.command("path")
@click.argument("source")
@click.argument("destination")
@iaas_option
@pass_session
def path(session: Session, source: str, destination: str, iaas: str) -> None:
    """Tell where a frame from VM SOURCE to VM DESTINATION would go, and why.

    DESTINATION may be an address outside of the segment: then where a packet would go (LISP).
    """
    _path(session, iaas, source, destination, traced=False)


@fabric_group.command("trace")
@click.argument("source")
@click.argument("destination")
@iaas_option
@pass_session
def trace(session: Session, source: str, destination: str, iaas: str) -> None:
    """Send probes along the way from SOURCE's node to DESTINATION's; tell who answered."""
    _path(session, iaas, source, destination, traced=True)


# Security groups --------------------------------------------------------------------------------


@click.group("group")
def group_group() -> None:
    """Security groups: what the ports of VMs let in."""


def parse_rule(text: str) -> Row:
    """Take a rule apart: ``in|out PROTOCOL[:PORT[-PORT]] [from|to PREFIX|group:NAME]``."""
    words = text.split()
    try:
        direction, what, *rest = words
        protocol, _, ports = what.partition(":")
        first, _, last = ports.partition("-")
        remote = rest[-1] if rest else ""
        if direction not in ("in", "out") or len(rest) not in (0, 2):
            raise ValueError
        rule: Row = {"ingress": direction == "in", "protocol": protocol}
        if ports:
            rule |= {"port_first": int(first), "port_last": int(last or first)}
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not like 'in tcp:80 from 10.0.0.0/20' or 'in any from group:web'"
        ) from None
    if remote.startswith("group:"):
        rule["remote_group"] = remote.removeprefix("group:")
    elif remote:
        rule["remote"] = remote
    return rule


def _groups(session: Session, iaas: str) -> str:
    return f"/v1/iaas/{session.require_iaas(iaas)}/security-groups"


@group_group.command("list")
@iaas_option
@pass_session
def list_groups(session: Session, iaas: str) -> None:
    """List security groups and their rules."""
    answer = session.client.get(_groups(session, iaas))
    groups = [inner(row, "value") for row in rows_of(answer)]
    names: Row = {str(group["group_id"]): group["name"] for group in groups}
    show(
        session,
        answer,
        ("GROUP", "ID", "RULES"),
        (
            (
                group["name"],
                group["group_id"],
                "; ".join(_rule_text(rule, names) for rule in rows_of(group["rules"]))
                or "nothing comes in",
            )
            for group in groups
        ),
        empty="there is no security group: a VM takes what comes from its own segment",
    )


def _rule_text(rule: Row, names: Row) -> str:
    first, last = rule["port_first"], rule["port_last"]
    is_all = (first, last) == (0, 65535)
    ports = "" if is_all else f":{first}" if first == last else f":{first}-{last}"
    group = str(rule["remote_group"] or "")
    far = rule["remote"] or (f"group:{names.get(group, group)}" if group else "")
    way = ("in", "from") if rule["ingress"] else ("out", "to")
    return f"{way[0]} {rule['protocol']}{ports}" + (f" {way[1]} {far}" if far else "")


@group_group.command("create")
@click.argument("name")
@click.option("--rule", "rules", multiple=True, help="'in tcp:80 from 10.0.0.0/20'; repeat.")
@iaas_option
@pass_session
def create_group(session: Session, name: str, rules: tuple[str, ...], iaas: str) -> None:
    """Make security group NAME."""
    body = {"group": name, "rules": [parse_rule(rule) for rule in rules]}
    answer = row_of(session.client.call("POST", _groups(session, iaas), body))
    said(session, answer, f"{answer['id']}  {name}")


@group_group.command("set")
@click.argument("name")
@click.option("--rule", "rules", multiple=True, help="'in tcp:80 from 10.0.0.0/20'; repeat.")
@iaas_option
@pass_session
def set_group(session: Session, name: str, rules: tuple[str, ...], iaas: str) -> None:
    """Give security group NAME these rules in place of its own."""
    body = {"rules": [parse_rule(rule) for rule in rules]}
    answer = session.client.call("PUT", f"{_groups(session, iaas)}/{name}", body)
    said(session, answer, f"{name} has {len(rules)} rule{'s' * (len(rules) != 1)}")


@group_group.command("delete")
@click.argument("name")
@iaas_option
@pass_session
def delete_group(session: Session, name: str, iaas: str) -> None:
    """Delete security group NAME."""
    answer = session.client.call("DELETE", f"{_groups(session, iaas)}/{name}")
    said(session, answer, f"{name} is gone")


@click.command("port")
@click.argument("vm")
@click.option("--group", "groups", multiple=True, help="Put it into these groups; repeat.")
@click.option("--no-group", is_flag=True, help="Take it out of all groups.")
@click.option(
    "--rate-mbit",
    type=int,
    default=None,
    help="Limit each direction; 0: what the contract's class gives.",
)
@iaas_option
@pass_session
def port_command(
    session: Session,
    vm: str,
    groups: tuple[str, ...],
    no_group: bool,
    rate_mbit: int | None,
    iaas: str,
) -> None:
    """Say what the port of VM lets through, and how fast; without options, show it."""
    body: Row = {}
    if groups or no_group:
        body["groups"] = list(groups)
    if rate_mbit is not None:
        body["rate_mbit"] = rate_mbit
    tenant = f"/v1/iaas/{session.require_iaas(iaas)}"
    if body:
        answer = row_of(session.client.call("PUT", f"{tenant}/vms/{vm}/port", body))
    else:
        vm_id = row_of(session.client.get(f"{tenant}/vms/{vm}"))["id"]
        ports = rows_of(session.client.get(f"{tenant}/ports"))
        answer = next((row for row in ports if inner(row, "value")["vm_id"] == vm_id), {})
        if not answer:
            raise NotFound("port", vm, hint="it comes with the VM, once that is placed")
    if answered(session, answer):
        return
    port = inner(answer, "value")
    known = rows_of(session.client.get(f"{tenant}/security-groups"))
    names = {group["id"]: inner(group, "value")["name"] for group in known}
    listed = ", ".join(str(names.get(group, group)) for group in _listed(port["security_groups"]))
    facts = (
        ("port", f"{vm}  {answer['id']}"),
        ("address", ", ".join(map(str, _listed(port["addresses"])))),
        ("MAC", port["mac"]),
        ("groups", listed or "none: what comes from its own segment comes in"),
        ("rate", f"{port['rate_mbit']} Mbit/s" if port["rate_mbit"] else "of the contract's class"),
    )
    print_facts(facts)


COMMANDS = (fabric_group, group_group, port_command)
