"""`nuage vm …` and `nuage volume …`."""

import time
from pathlib import Path

import click

from nuage.cli.session import Session, iaas_option, pass_session
from nuage.cli.showing import Row, inner, listed, print_json, print_table, row_of, rows_of, show
from nuage.errors import InvalidRequest, TimedOut
from nuage.units import format_size, parse_size

WAIT_S = 120.0
POLL_S = 0.2


def size(text: str) -> int:
    """Read a size option."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise InvalidRequest(str(error), field="size") from None


@click.group("vm")
def vm_group() -> None:
    """Virtual machines."""


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
    type=click.Path(path_type=Path, exists=True),
    default=None,
    help="Handed to cloud-init.",
)
@click.option("--ssh-key", "ssh_keys", multiple=True, help="A public key; repeat.")
@click.option("--at", "site", default="", metavar="SITE", help="Only this site.")
@click.option("--on", "node", default="", metavar="NODE", help="Only this node.")
@click.option("--near", multiple=True, metavar="VM", help="On the same node as; repeat.")
@click.option("--apart", multiple=True, metavar="VM", help="On another node than; repeat.")
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
        "shape": {"vcpu_count": options["vcpus"], "memory_mib": size(str(options["memory"])) >> 20},
        "segment": options["segment"],
        "user_data": user_data.read_text() if isinstance(user_data, Path) else "",
        "ssh_keys": options["ssh_keys"],
        "site": options["site"],
        "node": options["node"],
        "near": options["near"],
        "apart": options["apart"],
        "policy": options["policy"],
        "preference": options["preference"],
    }
    answer = row_of(session.client.call("POST", _vms(session, iaas), body))
    if wait:
        _wait_for(session, iaas, name, "running")
    if session.as_json:
        print_json(answer)
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
            raise TimedOut(f"{name} to be {state}; it is {value['state']}", after_s=WAIT_S)
        time.sleep(POLL_S)  # noqa: TID251 - a person waits


@vm_group.command("list")
@iaas_option
@pass_session
def list_vms(session: Session, iaas: str) -> None:
    """Show an IaaS's VMs."""
    answer = session.client.get(_vms(session, iaas))
    rows = [
        (
            (v := inner(row, "value"))["name"], row["id"], v["state"], v["site_id"], v["node_id"],
            f"{inner(v, 'shape')['vcpu_count']} × {inner(v, 'shape')['memory_mib']} MiB",
            row["epoch"], v["failure"],
        )
        for row in rows_of(answer)
    ]  # fmt: skip
    headers = ("NAME", "ID", "STATE", "SITE", "NODE", "SHAPE", "EPOCH", "FAILURE")
    show(session, answer, headers, rows, empty="no VM yet; `nuage vm create` makes one")


@vm_group.command("show")
@click.argument("name")
@iaas_option
@pass_session
def show_vm(session: Session, name: str, iaas: str) -> None:
    """Show one VM, whole."""
    print_json(session.client.get(f"{_vms(session, iaas)}/{name}"))


@vm_group.command("explain")
@click.argument("name")
@iaas_option
@pass_session
def explain_vm(session: Session, name: str, iaas: str) -> None:
    """Tell why a VM is where it is: the score of each candidate, each refusal by rule."""
    answer = row_of(session.client.get(f"{_vms(session, iaas)}/{name}/decision"))
    if session.as_json:
        print_json(answer)
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
        where = refusal["node_id"] or "(whole site)"
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
@click.option("--policy", default="")
@click.option("--wait/--no-wait", default=True, show_default=True)
@iaas_option
@pass_session
def migrate_vm(
    session: Session, name: str, site: str, node: str, policy: str, wait: bool, iaas: str
) -> None:
    """Move a running VM live, to another site if asked; its disk and address stay with it."""
    body = {"site": site, "node": node, "policy": policy}
    started = time.monotonic()
    answer = row_of(session.client.call("POST", f"{_vms(session, iaas)}/{name}/migrate", body))
    decision = inner(answer, "decision")
    click.echo(f"{name} goes to {decision['elected']} at {decision['elected_site']}")
    if wait:
        value = _wait_for(session, iaas, name, "running")
        if value["failure"]:
            raise InvalidRequest(str(value["failure"]))
        took_s = time.monotonic() - started
        click.echo(f"{name} runs on {value['node_id']}; the move took {took_s:.1f} s")


@vm_group.command("resize")
@click.argument("name")
@click.option("--vcpus", default=1, show_default=True)
@click.option("--memory", default="256M", show_default=True)
@iaas_option
@pass_session
def resize_vm(session: Session, name: str, vcpus: int, memory: str, iaas: str) -> None:
    """Change a VM's shape; it takes effect at its next start."""
    body = {"shape": {"vcpu_count": vcpus, "memory_mib": size(memory) >> 20}}
    session.client.call("PUT", f"{_vms(session, iaas)}/{name}/shape", body)
    click.echo(f"{name}: {vcpus} vCPUs, {memory}, from its next start")


@vm_group.command("console")
@click.argument("name")
@click.option("--lines", default=0, help="Only the last lines.")
@iaas_option
@pass_session
def console_vm(session: Session, name: str, lines: int, iaas: str) -> None:
    """Print what a VM wrote on its serial console."""
    answer = row_of(session.client.get(f"{_vms(session, iaas)}/{name}/console"))
    text = str(answer["text"]).replace("\r", "")
    click.echo("\n".join(text.splitlines()[-lines:]) if lines else text, nl=bool(lines))


@vm_group.command("type")
@click.argument("name")
@click.argument("text")
@iaas_option
@pass_session
def type_vm(session: Session, name: str, text: str, iaas: str) -> None:
    """Type TEXT and Enter on a VM's serial console."""
    path = f"{_vms(session, iaas)}/{name}/console"
    session.client.call("POST", path, {"text": text + "\n"})


@vm_group.command("attach")
@click.argument("name")
@iaas_option
@pass_session
def attach_vm(session: Session, name: str, iaas: str) -> None:
    """Use a VM's serial console from this terminal; Ctrl-] leaves it."""
    from nuage.cli.console import attach

    attach(session.client, f"{_vms(session, iaas)}/{name}/console")


def _simple(verb: str, help_text: str, done: str) -> click.Command:
    @vm_group.command(verb, help=help_text)
    @click.argument("name")
    @iaas_option
    @pass_session
    def command(session: Session, name: str, iaas: str) -> None:
        session.client.call("POST", f"{_vms(session, iaas)}/{name}/{verb}")
        click.echo(f"{name} {done}")

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
    session.client.call("DELETE", f"{_vms(session, iaas)}/{name}")
    click.echo(f"{name} is being deleted")


@click.group("volume")
def volume_group() -> None:
    """Disks of an IaaS, each a replicated journal."""


def _volumes(session: Session, iaas: str) -> str:
    return f"/v1/iaas/{session.require_iaas(iaas)}/volumes"


@volume_group.command("create")
@click.argument("name")
@click.argument("volume_size", metavar="SIZE")
@iaas_option
@pass_session
def create_volume(session: Session, name: str, volume_size: str, iaas: str) -> None:
    """Make an empty volume NAME of SIZE (10G)."""
    body = {"name": name, "size_bytes": size(volume_size)}
    answer = row_of(session.client.call("POST", _volumes(session, iaas), body))
    click.echo(f"{answer['id']}  {name}")


@volume_group.command("list")
@iaas_option
@pass_session
def list_volumes(session: Session, iaas: str) -> None:
    """Show an IaaS's volumes."""
    answer = session.client.get(_volumes(session, iaas))
    rows = [
        (
            (v := inner(row, "value"))["name"], row["id"], v["state"],
            format_size(int(str(v["size_bytes"]))), v["vm_id"] or "", v["head"],
            ", ".join(str(r["node_id"]) for r in rows_of(v["replicas"])), v["failure"],
        )
        for row in rows_of(answer)
    ]  # fmt: skip
    headers = ("NAME", "ID", "STATE", "SIZE", "VM", "HEAD", "COPIES", "FAILURE")
    show(session, answer, headers, rows, empty="no volume yet")


@volume_group.command("show")
@click.argument("name")
@iaas_option
@pass_session
def show_volume(session: Session, name: str, iaas: str) -> None:
    """Show one volume, whole."""
    print_json(session.client.get(f"{_volumes(session, iaas)}/{name}"))


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


def _moment(text: str) -> dict[str, object]:
    """Read ``#123`` as a write's number, ``14:05:10``, ``90s ago`` or epoch seconds as a time."""
    stripped = text.strip()
    if stripped.startswith("#"):
        return {"sequence": int(stripped[1:])}
    if stripped.endswith("s ago"):
        return {"time_s": time.time() - float(stripped[:-5])}
    if ":" in stripped:
        today = time.strftime("%Y-%m-%d ")
        form = "%Y-%m-%d %H:%M:%S"
        return {"time_s": time.mktime(time.strptime(today + stripped, form))}
    return {"time_s": float(stripped)}


def read_moment(text: str) -> dict[str, object]:
    """Return the fields of a moment."""
    try:
        return _moment(text)
    except ValueError:
        raise InvalidRequest(
            f"{text!r} is not a moment",
            field="moment",
            hint="write #NUMBER of a write, HH:MM:SS of today, '90s ago', or epoch seconds",
        ) from None


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
    if session.as_json:
        print_json(answer)
        return
    kept = format_size(int(str(answer["history_bytes"])))
    click.echo(f"writes #{answer['horizon_sequence']} to #{answer['sequence']} are kept, {kept}")
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
    moment = float(str(seconds))
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
    answer = row_of(session.client.call("POST", f"{_volumes(session, iaas)}/{name}/marks", body))
    for volume, sequence in inner(answer, "sequences").items():
        click.echo(f"{volume}  #{sequence}  {mark}")


@volume_group.command("clone")
@click.argument("name")
@click.argument("new_name")
@click.option("--at", "moment", default="", help="#NUMBER, HH:MM:SS, '90s ago'.  [default: now]")
@iaas_option
@pass_session
def clone_volume(session: Session, name: str, new_name: str, moment: str, iaas: str) -> None:
    """Make NEW_NAME from any moment of NAME's past, at once."""
    body = {"name": new_name, **(read_moment(moment) if moment else {})}
    answer = row_of(session.client.call("POST", f"{_volumes(session, iaas)}/{name}/clone", body))
    click.echo(f"{answer['id']}  {new_name}")


@volume_group.command("rollback")
@click.argument("name")
@click.argument("moment")
@click.option("--force", is_flag=True, help="Even while a VM uses it.")
@iaas_option
@pass_session
def rollback_volume(session: Session, name: str, moment: str, force: bool, iaas: str) -> None:
    """Take a volume back to MOMENT (#NUMBER, HH:MM:SS, '90s ago'); what came since is kept."""
    body = {**read_moment(moment), "force": force}
    session.client.call("POST", f"{_volumes(session, iaas)}/{name}/rollback", body)
    click.echo(f"{name} is back at {moment}")


@volume_group.command("attach")
@click.argument("name")
@click.argument("vm")
@iaas_option
@pass_session
def attach_volume(session: Session, name: str, vm: str, iaas: str) -> None:
    """Give a free volume to a VM."""
    session.client.call("POST", f"{_volumes(session, iaas)}/{name}/attach", {"vm": vm})
    click.echo(f"{name} is attached to {vm}")


@volume_group.command("detach")
@click.argument("name")
@iaas_option
@pass_session
def detach_volume(session: Session, name: str, iaas: str) -> None:
    """Take a volume from its VM."""
    session.client.call("POST", f"{_volumes(session, iaas)}/{name}/detach")
    click.echo(f"{name} is free")


@volume_group.command("grow")
@click.argument("name")
@click.argument("volume_size", metavar="SIZE")
@iaas_option
@pass_session
def grow_volume(session: Session, name: str, volume_size: str, iaas: str) -> None:
    """Make a volume larger."""
    body = {"size_bytes": size(volume_size)}
    session.client.call("PUT", f"{_volumes(session, iaas)}/{name}/size", body)
    click.echo(f"{name} has {volume_size}")


@volume_group.command("delete")
@click.argument("name")
@iaas_option
@pass_session
def delete_volume(session: Session, name: str, iaas: str) -> None:
    """Delete a free volume and all its copies."""
    session.client.call("DELETE", f"{_volumes(session, iaas)}/{name}")
    click.echo(f"{name} is gone")


COMMANDS = (vm_group, volume_group)
