"""`nuage vm …`."""

import time
from collections.abc import Sequence
from pathlib import Path

import click

from nuage.cli.paths import FILE
from nuage.cli.session import Session, iaas_option, pass_session
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
    said,
    show,
)
from nuage.errors import Conflict, InvalidRequest, TimedOut
from nuage.units import parse_size

WAIT_S = 120.0
POLL_S = 0.2


STALE_S = 10.0  # a site that is well is heard every second


def size(text: str) -> int:
    """Read a size option."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise InvalidRequest(str(error), field="size") from None


@click.group("vm")
def vm_group() -> None:
    """Virtual machines."""


PLACE = "a node, a rack or a site"


def _shape(vcpus: object, memory: str, preserve: object) -> dict[str, object]:
    mib = size(memory) >> 20
    return {"vcpu_count": vcpus, "memory_mib": mib, "preserved_vcpus": preserve}


def _vms(session: Session, iaas: str) -> str:
    return f"/v1/iaas/{session.require_iaas(iaas)}/vms"


@vm_group.command("create")
@click.argument("name")
@click.option("--image", default="", help="Boot from a fresh volume of this image.")
@click.option("--volume", default="", help="Boot from this volume.")
@click.option(
    "--volume-size", default="", metavar="SIZE", help="Of the fresh volume.  [default: the image's]"
)
@click.option("--vcpus", default=1, show_default=True)
@click.option("--memory", default="256M", show_default=True, metavar="SIZE")
@click.option("--segment", default="default", show_default=True)
@click.option(
    "--user-data",
    type=FILE,
    default=None,
    help="Handed to cloud-init.",
)
@click.option("--ssh-key", "ssh_keys", multiple=True, help="A public key; repeat.")
@click.option("--at", "site", default="", metavar="SITE", help="Only this site.")
@click.option("--on", "node", default="", metavar="NODE", help="Only this node.")
@click.option("--near", multiple=True, metavar="VM", help="At the same site as; repeat.")
@click.option("--apart", multiple=True, metavar="VM", help="On another node than; repeat.")
@click.option("--fence", multiple=True, metavar="PLACE", help=f"Only there, {PLACE}; repeat.")
@click.option("--ban", multiple=True, metavar="PLACE", help=f"Never there, {PLACE}; repeat.")
@click.option("--preserve", default=0, show_default=True, metavar="VCPUS",
              help="So many vCPUs with a core each that nobody else is sold.")  # fmt: skip
@click.option(
    "--policy",
    default="",
    help="power, performance, green, cost, carbon, cursor, spread, pack, random.",
)
@click.option(
    "--preference",
    default=0.0,
    show_default=True,
    help="-1 performance … +1 energy, for the cursor policy.",
)
@click.option("--wait/--no-wait", default=False, help="Wait until it runs.")
@iaas_option
@pass_session
def create_vm(session: Session, /, name: str, iaas: str, wait: bool, **options: object) -> None:
    """Place and create a VM NAME; shows where it goes and why."""
    user_data = options["user_data"]
    body = {
        "name": name,
        "image": options["image"],
        "volume": options["volume"],
        "volume_bytes": size(str(options["volume_size"])) if options["volume_size"] else 0,
        "shape": _shape(options["vcpus"], str(options["memory"]), options["preserve"]),
        "segment": options["segment"],
        "user_data": user_data.read_text() if isinstance(user_data, Path) else "",
        "ssh_keys": options["ssh_keys"],
        "site": options["site"],
        "node": options["node"],
        "near": options["near"],
        "apart": options["apart"],
        "fence": options["fence"],
        "ban": options["ban"],
        "policy": options["policy"],
        "preference": options["preference"],
    }
    answer = row_of(session.client.call("POST", _vms(session, iaas), body))
    if wait:
        _wait_for(session, iaas, name, "running")
    if answered(session, answer):
        return
    decision = inner(answer, "decision")
    vm = inner(answer, "vm")
    click.echo(f"{vm['id']}  {name}  goes to {decision['elected']} at {decision['elected_site']}")
    click.echo(f"why: nuage vm explain {name}")


def _wait_for(session: Session, iaas: str, name: str, state: str) -> dict[str, object]:
    deadline_s = time.monotonic() + WAIT_S
    while True:
        row = row_of(session.client.get(f"{_vms(session, iaas)}/{name}"))
        value = inner(row, "value")
        if value["state"] == state and value["migrating_to"] is None:
            return value
        if value["state"] == "failed":
            raise InvalidRequest(f"{name} failed: {value['failure']}")
        if time.monotonic() > deadline_s:
            raise TimedOut(
                f"{name} to be {state}; it is {value['state']}",
                after_s=WAIT_S,
                hint=str(value["failure"]),
            )
        time.sleep(POLL_S)  # noqa: TID251 - a person waits


@vm_group.command("list")
@iaas_option
@pass_session
def list_vms(session: Session, iaas: str) -> None:
    """Show an IaaS's VMs."""
    answer = session.client.get(_vms(session, iaas))
    if answered(session, answer):
        return
    addresses = {port["vm_id"]: _addresses(port) for port in _ports(session, iaas)}
    rows = [
        (
            (v := inner(row, "value"))["name"], row["id"], _state(row), v["site_id"], v["node_id"],
            f"{inner(v, 'shape')['vcpu_count']} × {inner(v, 'shape')['memory_mib']} MiB",
            addresses.get(row["id"], ""), v["failure"],
        )
        for row in rows_of(answer)
    ]  # fmt: skip
    headers = ("NAME", "ID", "STATE", "SITE", "NODE", "SHAPE", "ADDRESS", "FAILURE")
    show(session, answer, headers, rows, empty="no VM yet; `nuage vm create` makes one")


def _state(row: Row) -> str:
    """Return a VM's state, with its age where its site has not been heard lately."""
    state, age_s = str(inner(row, "value")["state"]), float(str(row["age_s"]))
    return f"{state} {age(age_s)} ago" if age_s >= STALE_S else state


def _ports(session: Session, iaas: str) -> list[Row]:
    """Return the ports of an IaaS."""
    path = f"/v1/iaas/{session.require_iaas(iaas)}/ports"
    return [inner(row, "value") for row in rows_of(session.client.get(path))]


def _addresses(port: Row) -> str:
    return ", ".join(str(address).partition("/")[0] for address in listed(port, "addresses"))


@vm_group.command("show")
@click.argument("name")
@iaas_option
@pass_session
def show_vm(session: Session, name: str, iaas: str) -> None:
    """Show one VM: how it is, where it runs, what it has."""
    answer = row_of(session.client.get(f"{_vms(session, iaas)}/{name}"))
    if answered(session, answer):
        return
    vm, shape = inner(answer, "value"), inner(inner(answer, "value"), "shape")
    own_ports = [port for port in _ports(session, iaas) if port["vm_id"] == answer["id"]]
    volumes = f"/v1/iaas/{session.require_iaas(iaas)}/volumes"
    names = {row["id"]: inner(row, "value")["name"] for row in rows_of(session.client.get(volumes))}
    moves = vm["migrating_to"]
    facts = (
        ("vm", f"{vm['name']}  {answer['id']}"),
        (
            "state",
            vm["state"] if vm["state"] == vm["wish"] else f"{vm['state']}, {vm['wish']} wanted",
        ),
        ("failure", vm["failure"]),
        (
            "runs on",
            f"{vm['node_id']} at {vm['site_id']}, epoch {answer['epoch']}" if vm["node_id"] else "",
        ),
        ("moves to", moves or ""),
        ("shape", f"{shape['vcpu_count']} × {shape['memory_mib']} MiB"),
        ("preserved", f"{kept} of its vCPUs" if (kept := shape.get("preserved_vcpus")) else ""),
        *_rules(vm),
        *(("address", _port_text(port)) for port in own_ports),
        ("volumes", ", ".join(str(names.get(vol, vol)) for vol in listed(vm, "volumes"))),
        ("last move", f"stood still for {vm['downtime_ms']:.0f} ms" if vm["downtime_ms"] else ""),
        ("restarts", _restarts(vm)),
        ("known", f"as of {age(answer['age_s'])} ago, homed at {answer['site']}"),
    )
    print_facts(facts)


def _restarts(vm: Row) -> str:
    count = vm.get("restart_count", 0)  # controllers of earlier releases do not tell
    return f"{count}, unasked, since it came to {vm['node_id']}" if count else ""


def _port_text(port: Row) -> str:
    groups = len(listed(port, "security_groups"))
    in_groups = f", in {groups} security group{'s' * (groups != 1)}" if groups else ""
    return f"{_addresses(port)}  MAC {port['mac']}{in_groups}"


@vm_group.command("explain")
@click.argument("name")
@iaas_option
@pass_session
def explain_vm(session: Session, name: str, iaas: str) -> None:
    """Tell why a VM is where it is: the score of each candidate, each refusal by rule."""
    answer = row_of(session.client.get(f"{_vms(session, iaas)}/{name}/decision"))
    if answered(session, answer):
        return
    asked = ", ".join(map(str, listed(answer, "asked_sites")))
    silent = ", ".join(map(str, listed(answer, "silent_sites")))
    click.echo(
        f"policy {answer['policy']}; asked {asked}" + (f"; silent {silent}" if silent else "")
    )
    rows: list[tuple[object, ...]] = []
    for rank, candidate in enumerate(rows_of(answer["ranked"]), start=1):
        mark = "elected" if candidate["node_id"] == answer["elected"] else ""
        score = f"{float(str(candidate['score'])):.4g}"
        terms = inner(candidate, "terms")
        costs = (_term(terms, name, digits) for name, digits in EXPLAINED)
        rows.append((rank, candidate["node_id"], candidate["site_id"], score, *costs, mark))
    for refusal in rows_of(answer["refusals"]):
        count = int(str(refusal.get("node_count", 1)))
        where = refusal["node_id"] or (f"({count} nodes)" if count > 1 else "(whole site)")
        told = f"refused: {refusal['rule']}: {refusal['reason']}"
        rows.append(("", where, refusal["site_id"], "", *("" for _ in EXPLAINED), told))
    headers = ("#", "NODE", "SITE", "SCORE", "+W", "× PUE", "× EUR/MWh", "= EUR/h", "gCO2e/h",
               "GFLOPS", "RESULT")  # fmt: skip
    print_table(headers, rows, empty="no candidate")


# The cost of a placement, as it is multiplied out; `--json` has every term that was seen.
EXPLAINED = (
    ("marginal_watts", 1), ("pue", 2), ("price_eur_per_mwh", 1), ("cost_eur_per_h", 5),
    ("carbon_g_per_h", 2), ("flops", 1),
)  # fmt: skip


def _term(terms: Row, name: str, digits: int) -> str:
    if name not in terms:
        return ""
    value = float(str(terms[name]))
    return f"{value / 1e9 if name == 'flops' else value:.{digits}f}"


@vm_group.command("migrate")
@click.argument("name")
@click.option("--to", "site", default="", metavar="SITE", help="To this site.")
@click.option("--on", "node", default="", metavar="NODE", help="To this node.")
@click.option("--policy", default="", help="As in `nuage vm create`.  [default: the site's]")
@click.option(
    "--within",
    default=0.0,
    metavar="SECONDS",
    help="Let it stay if its memory has not gone by then.  [default: only if it never would]",
)
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it runs there.")
@iaas_option
@pass_session
def migrate_vm(
    session: Session,
    name: str,
    site: str,
    node: str,
    policy: str,
    within: float,
    wait: bool,
    iaas: str,
) -> None:
    """Move a running VM live, to another site if asked; its disk and address stay with it.

    A guest that writes faster than the line carries is slowed down while it is
    sent. One whose memory never all goes stays where it is.
    """
    body = {"site": site, "node": node, "policy": policy, "within_s": within}
    started = time.monotonic()
    answer = row_of(session.client.call("POST", f"{_vms(session, iaas)}/{name}/migrate", body))
    decision = inner(answer, "decision")
    if not answered(session, answer):
        click.echo(f"{name} goes to {decision['elected']} at {decision['elected_site']}")
        told = inner(inner(answer, "vm"), "value")["failure"]
        if told:
            click.echo(f"it {told}")
    if wait:
        value = _wait_for(session, iaas, name, "running")
        if value["node_id"] != decision["elected"]:  # its record soon forgets why
            told = value["failure"] or f"{name} stayed on {value['node_id']}"
            raise Conflict(str(told), hint="`nuage events --last 30` says why")
        took_s = time.monotonic() - started
        if not session.as_json:
            click.echo(f"{name} runs on {value['node_id']}; the move took {took_s:.1f} s")


@vm_group.command("resize")
@click.argument("name")
@click.option("--vcpus", type=int, help="[default: as before]")
@click.option("--memory", default="", metavar="SIZE", help="[default: as before]")
@click.option("--preserve", type=int, metavar="VCPUS",
              help="So many vCPUs with a core each for itself.  [default: as before]")  # fmt: skip
@iaas_option
@pass_session
def resize_vm(
    session: Session, name: str, vcpus: int | None, memory: str, preserve: int | None, iaas: str
) -> None:
    """Change a VM's shape; it takes effect at its next start."""
    path = f"{_vms(session, iaas)}/{name}"
    asked = {
        "vcpu_count": vcpus, "preserved_vcpus": preserve,
        "memory_mib": size(memory) >> 20 if memory else None,
    }  # fmt: skip
    changes = {field: value for field, value in asked.items() if value is not None}
    if not changes:
        raise InvalidRequest("nothing is to change", field="memory", hint="--memory, --vcpus")
    shape = inner(inner(row_of(session.client.get(path)), "value"), "shape") | changes
    answer = session.client.call("PUT", f"{path}/shape", {"shape": shape})
    told = f"{shape['vcpu_count']} vCPUs, {shape['memory_mib']} MiB"
    said(session, answer, f"{name}: {told}, from its next start")


@vm_group.command("rules")
@click.argument("name")
@click.option("--fence", multiple=True, metavar="PLACE", help=f"Only there, {PLACE}; repeat.")
@click.option("--ban", multiple=True, metavar="PLACE", help=f"Never there, {PLACE}; repeat.")
@click.option("--near", multiple=True, metavar="VM", help="At the same site as; repeat.")
@click.option("--apart", multiple=True, metavar="VM", help="On another node than; repeat.")
@click.option("--lift", multiple=True, type=click.Choice(("fence", "ban", "near", "apart")),
              help="Lift this rule; repeat.")  # fmt: skip
@iaas_option
@pass_session
def rule_vm(
    session: Session, /, name: str, lift: Sequence[str], iaas: str, **rules: object
) -> None:
    """Change where a VM may run; one that runs where it may not is moved live, by plan."""
    body = {rule: names for rule, names in rules.items() if names} | dict.fromkeys(lift, ())
    answer = row_of(session.client.call("PUT", f"{_vms(session, iaas)}/{name}/rules", body))
    if answered(session, answer):
        return
    told = _rules(inner(answer, "value"))
    print_facts(told)
    if not any(names for _, names in told):
        click.echo(f"{name} may run wherever its contract allows")


def _rules(vm: Row) -> tuple[tuple[str, str], ...]:
    """Return what a VM's owner says of where it may run."""
    return tuple(
        (told, ", ".join(str(name) for name in listed(vm, rule)))
        for rule, told in (
            ("fence", "only on"), ("ban", "never on"), ("near", "near"), ("apart", "apart from"),
        )
    )  # fmt: skip


@vm_group.command("console")
@click.argument("name")
@click.option("--lines", type=click.IntRange(0), default=0, help="Only the last lines.")
@iaas_option
@pass_session
def console_vm(session: Session, name: str, lines: int, iaas: str) -> None:
    """Print what a VM wrote on its serial console."""
    answer = row_of(session.client.get(f"{_vms(session, iaas)}/{name}/console"))
    if answered(session, answer):
        return
    text = str(answer["text"]).replace("\r", "")
    click.echo("\n".join(text.splitlines()[-lines:]) if lines else text, nl=bool(lines))


@vm_group.command("type")
@click.argument("name")
@click.argument("text")
@iaas_option
@pass_session
def type_vm(session: Session, name: str, text: str, iaas: str) -> None:
    """Type TEXT and Enter on a VM's serial console."""
    from nuage.api.console_client import Console

    with Console(session.client, f"{_vms(session, iaas)}/{name}") as console:
        console.type(text + "\n")


@vm_group.command("attach")
@click.argument("name")
@iaas_option
@pass_session
def attach_vm(session: Session, name: str, iaas: str) -> None:
    """Use a VM's serial console from this terminal; Ctrl-] leaves it."""
    from nuage.cli.console import attach

    attach(session.client, f"{_vms(session, iaas)}/{name}")


def _simple(verb: str, help_text: str, done: str) -> click.Command:
    @vm_group.command(verb, help=help_text)
    @click.argument("name")
    @iaas_option
    @pass_session
    def command(session: Session, name: str, iaas: str) -> None:
        answer = session.client.call("POST", f"{_vms(session, iaas)}/{name}/{verb}")
        said(session, answer, f"{name} {done}")

    return command


_simple("start", "Start a VM.", "starts")
_simple("stop", "Stop a VM: asked by ACPI, then forced.", "stops")
_simple("reboot", "Reboot a VM once.", "reboots")


@vm_group.command("delete")
@click.argument("name")
@iaas_option
@pass_session
def delete_vm(session: Session, name: str, iaas: str) -> None:
    """Delete a VM and its boot volume; other volumes are detached."""
    answer = session.client.call("DELETE", f"{_vms(session, iaas)}/{name}")
    said(session, answer, f"{name} is being deleted")


COMMANDS = (vm_group,)
