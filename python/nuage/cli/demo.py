"""`nuage lab demo`: the main job, run for real and told as it goes.

Every step is what a person would do with the same commands; figures are measured, never typed in.
"""

import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from nuage.api.client import Client
from nuage.api.profile import Profile, keep_profile
from nuage.cli.console import wait_for_text
from nuage.cli.fabric_demo import fabric_demo
from nuage.cli.showing import age, inner, row_of, rows_of
from nuage.cli.storage_demo import StorageDemo, Telling
from nuage.cli.tenant import Tenant
from nuage.errors import NotFound, NuageError, TimedOut, Unavailable
from nuage.lab.assembly import admin_of, api_socket, assemble, disband
from nuage.lab.description import DEFAULT_DESCRIPTION
from nuage.lab.lab import Lab
from nuage.trust.verify import load_keys, verify_audit

IAAS: Final = "demo-corp"
WEB: Final = "web1"
DATABASE: Final = "db1"
USER: Final = "demo"
WAIT_S: Final = 90.0
POLL_S: Final = 0.1
TREE: Final = Path(__file__).resolve().parents[3]
GUEST: Final = TREE / ".build/guest/guest.raw"
GUEST_BUILDER: Final = TREE / "tools/guest/build.py"

out = Console(highlight=False)


class Demo:
    """One run of the main job."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._figures: list[tuple[str, str]] = []
        self._step = 0
        self._begun_s = time.monotonic()  # the step
        self._sites = [site.id for site in lab.description.sites]

    # Telling --------------------------------------------------------------------------------------

    def say(self, title: str) -> None:
        """Begin a step; tell how long the one before took."""
        self._tell_time()
        self._step += 1
        out.print(f"\n[bold cyan]{self._step:>2}.[/] [bold]{title}[/]")

    def _tell_time(self) -> None:
        now_s = time.monotonic()
        if self._step:
            out.print(f"    [dim]took {now_s - self._begun_s:.1f} s[/]")
        self._begun_s = now_s

    def note(self, text: str) -> None:
        """Tell a fact of the step."""
        out.print(f"    {text}")

    def figure(self, what: str, value: str) -> None:
        """Tell a fact, and keep it for the summary."""
        self._figures.append((what, value))
        self.note(f"{what}: [bold green]{value}[/]")

    # Steps ----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Do all of it."""
        self.start_lab()
        self.build_iaas()
        self.import_image()
        self.create_machines()
        self.migrate()
        telling = Telling(self.say, self.note, self.figure)
        storage = StorageDemo(self._user, self._lab, telling, iaas=IAAS, vm=WEB)
        reads_again = storage.go_back()
        self.lose_a_node()  # meanwhile the guest starts
        reads_again()
        Tenant(self._user, IAAS).until_booted(DATABASE)  # while its disk has all its copies
        self.note(f"and {DATABASE} has booted")
        storage.prove()
        catch_up = storage.lose_the_head()
        fabric_demo(
            self._user, self._lab, admin=self._admin, iaas=IAAS, asker=DATABASE, mover=WEB,
            say=self.say, note=self.note, figure=self.figure, before_move=catch_up,
        )  # fmt: skip
        self.cut_a_site()
        self.verify()
        self.sum_up()

    def client(self, site: str) -> Client:
        """Return a client of a site's API, without a token."""
        return Client(f"unix:{api_socket(self._lab, site)}")

    def start_lab(self) -> None:
        """Bring four datacenters up and have them join."""
        self.say("Four datacenters start, and join into a federation")
        begin = time.monotonic()
        with out.status("hardware") as status:
            self._lab.create_hardware(status.update)
            assemble(self._lab, status.update)
        self.figure("federation up", f"{time.monotonic() - begin:.1f} s")
        self._admin = self.client(self._sites[0])
        admin = admin_of(self._lab)
        self._admin.log_in(admin.name, admin.secret)
        for row in rows_of(self._admin.get("/v1/sites")):
            datacenter = inner(row, "datacenter")
            operator = inner(datacenter, "operator")
            place = f"{datacenter['site_id']!s:<9} {datacenter['place']!s:<16}"
            nodes = f"{row['node_connected_count']}/{row['node_count']} nodes"
            who = f"{operator['name']} ({operator['country']})"
            self.note(f"{place} tier {datacenter['tier']}  {nodes}  {who}")

    def build_iaas(self) -> None:
        """Build an IaaS under a contract, with a user of its own."""
        self.say(f"An IaaS for {IAAS}: data and operators in France, two copies in two sites")
        contract = {
            "data_countries": ["FR"],
            "operator_countries": ["FR"],
            "copies": 2,
            "copy_sites": 2,
            "ack_policy": "all",
        }
        if not any(inner(r, "value")["name"] == IAAS for r in rows_of(self._admin.get("/v1/iaas"))):
            body = {"name": IAAS, "owner": "Demo Corp", "contract": contract}
            self._admin.call("POST", "/v1/iaas", body)
        refused = {**contract, "data_countries": ["IS"]}
        try:
            self._admin.call("POST", "/v1/iaas", {"name": "iceland", "contract": refused})
        except NuageError as error:
            self.note(f"a contract nobody can meet is refused: [dim]{error.message}[/]")
        secret = secrets.token_urlsafe(18)
        known = [row["name"] for row in rows_of(self._admin.get("/v1/users"))]
        if USER in known:
            self._admin.call("PATCH", f"/v1/users/{USER}", {"secret": secret})
        else:
            grants = [f"iaas-admin@{IAAS}"]
            body = {"name": USER, "secret": secret, "grants": grants}
            self._admin.call("POST", "/v1/users", body)
        self._user = self.client(self._sites[0])
        token = self._user.log_in(USER, secret)
        profile = Profile(endpoint=self._user.endpoint, user=USER, token=token, iaas=IAAS)
        keep_profile(f"lab-{self._lab.description.name}-{USER}", profile)
        self.note(f"user {USER} administers it")

    def import_image(self) -> None:
        """Build the guest when it is not there, and import it."""
        self.say("The guest image is imported")
        images = [inner(row, "value") for row in rows_of(self._user.get("/v1/images"))]
        if any(image["name"] == "guest" and image["state"] == "ready" for image in images):
            self.note("it is there already")
            return
        if not GUEST.exists():
            self._build_guest()
        announced = row_of(self._admin.call("POST", "/v1/images", {"name": "guest"}))
        begin = time.monotonic()
        answer = self._admin.upload(f"/v1/images/{announced['id']}/data", GUEST, lambda _sent: None)
        value = inner(row_of(answer), "value")
        self.note(
            f"{int(str(value['size_bytes'])) >> 20} MiB in {time.monotonic() - begin:.1f} s, "
            f"sha256 {str(value['sha256'])[:16]}…"
        )

    def _build_guest(self) -> None:
        if not GUEST_BUILDER.exists():
            raise NotFound("guest builder", str(GUEST_BUILDER), hint="run this from a source tree")
        with out.status("building the test guest from Debian's packages"):
            done = subprocess.run(
                [sys.executable, str(GUEST_BUILDER)], capture_output=True, text=True, check=False
            )
        if done.returncode:
            raise Unavailable(f"the guest was not built: {done.stderr.strip()[-600:]}")

    def create_machines(self) -> None:
        """Create machines and tell where each went, and why."""
        self.say("Virtual machines are placed, and boot from replicated volumes")
        asked_s: dict[str, float] = {}
        for name in (WEB, DATABASE):
            if self._vm(name) is None:
                asked_s[name] = time.monotonic()
                answer = row_of(
                    self._user.call("POST", self._vms, {"name": name, "image": "guest"})
                )
                accepted_ms = (time.monotonic() - asked_s[name]) * 1000
                self._tell_choice(name, inner(answer, "decision"))
                self.note(f"  accepted in {accepted_ms:.0f} ms")
        for name, begin_s in asked_s.items():
            self._until(name, "running")
            self.note(f"{name} runs after {time.monotonic() - begin_s:.1f} s")
        if WEB in asked_s:  # a machine of an earlier run said it long ago, maybe on another node
            self._greet()
        places = rows_of(self._user.get(f"{self._volumes}/{WEB}-boot/where"))
        for place in places:
            word = "head" if place["is_head"] else "copy"
            where = f"{place['node']} in {place['place']}, {place['country']}"
            self.note(f"{WEB}'s disk, {word}: {where}")

    def _greet(self) -> None:
        greeting = wait_for_text(
            self._user, f"{self._vms}/{WEB}/console", "ready", after=0, timeout_s=WAIT_S
        )
        line = next((x for x in greeting.splitlines() if "ready" in x), "").strip()
        self.note(f"{WEB}'s console: [dim]{line}[/]")

    def _tell_choice(self, name: str, decision: dict[str, object]) -> None:
        ranked = rows_of(decision["ranked"])
        first = float(str(ranked[0]["score"]))
        second = f"; next best {ranked[1]['node_id']}" if len(ranked) > 1 else ""
        self.note(
            f"[bold]{name}[/] goes to {decision['elected']} ({decision['elected_site']}): "
            f"policy {decision['policy']}, score {first:.3g} of {len(ranked)} bids{second}"
        )

    def migrate(self) -> None:
        """Move a running machine to another datacenter."""
        start = self._require(WEB)["site_id"]
        taken = (start, self._require(DATABASE)["site_id"])
        target = next(site for site in self._sites if site not in taken)
        self.say(f"{WEB} moves live from {start} to {target}, its disk and address with it")
        begin = time.monotonic()
        self._user.call("POST", f"{self._vms}/{WEB}/migrate", {"site": target})
        self._until(WEB, "running", at_site=target)
        self.figure("live migration between sites", f"{time.monotonic() - begin:.1f} s")
        paused = self._event(lambda text: f"{WEB} was handed over, paused" in text)
        if paused:
            self.figure("guest paused for", paused.rpartition("paused ")[2])

    def lose_a_node(self) -> None:
        """Cut a V-node's power."""
        vm = self._require(DATABASE)
        node = str(vm["node_id"])
        self.say(f"The V-node {node} loses its power, with {DATABASE} on it")
        begin = time.monotonic()
        self._lab.kill(node)
        self._until(DATABASE, "running", not_on=node)
        back = self._require(DATABASE)
        self.figure(f"{DATABASE} runs again", f"after {time.monotonic() - begin:.1f} s")
        self.note(f"on {back['node_id']}, once {node} was confirmed off by its BMC")
        self._lab.power_on(node, wait=False)

    def cut_a_site(self) -> None:
        """Cut a site off and heal it."""
        site = self._sites[-1]
        self.say(f"{site} is cut off from the others, and goes on by itself")
        self._lab.cut(site)
        self._wait(lambda: not self._is_reachable(self._admin, site), f"{site} to be seen cut off")
        row = self._site_row(self._admin, site)
        self.note(
            f"{self._sites[0]} shows {site} as cut off; what it knows is {age(row['age_s'])} old"
        )
        alone = self.client(site)
        admin = admin_of(self._lab)
        begin = time.monotonic()
        alone.log_in(admin.name, admin.secret)
        self.note(f"{site} still issues tokens: {(time.monotonic() - begin) * 1000:.0f} ms")
        body = {"name": "alone", "contract": {"sites": [site]}}
        if not any(inner(r, "value")["name"] == "alone" for r in rows_of(alone.get("/v1/iaas"))):
            alone.call("POST", "/v1/iaas", body)
        self.note("and builds an IaaS of its own while alone")
        self._lab.heal(site)
        begin = time.monotonic()
        self._wait(lambda: self._is_reachable(self._admin, site), f"{site} to be seen again")
        self._wait(lambda: self._knows_iaas("alone"), "the IaaS to be seen everywhere")
        self.figure("caught up after the cut", f"{time.monotonic() - begin:.1f} s")

    def _knows_iaas(self, name: str) -> bool:
        return any(inner(r, "value")["name"] == name for r in rows_of(self._admin.get("/v1/iaas")))

    def verify(self) -> None:
        """Verify every site's audit log offline."""
        self.say("The audit logs are taken along and verified without the product")
        admin = admin_of(self._lab)
        total = 0
        with tempfile.TemporaryDirectory() as folder:
            for site in self._sites:
                directory = Path(folder) / site
                directory.mkdir()
                client = self.client(site)
                client.log_in(admin.name, admin.secret)
                for name in map(str, rows_of(client.get("/v1/audit"))):
                    (directory / name).write_bytes(client.download(f"/v1/audit/files/{name}"))
                (directory / "keys.json").write_bytes(client.download("/v1/audit/keys"))
                report = verify_audit(directory, load_keys(directory / "keys.json"))
                total += report.entry_count
                state = "verifies" if report.is_sound else "[red]DOES NOT VERIFY[/]"
                self.note(
                    f"{site}: {report.entry_count} entries, {report.signature_count} seals, {state}"
                )
        self.figure("audit entries verified", str(total))

    def sum_up(self) -> None:
        """Print what was measured and what to try next."""
        self._tell_time()
        table = Table(title="measured in this run", title_justify="left", box=None, pad_edge=False)
        table.add_column("what", style="bold")
        table.add_column("value", style="green")
        for what, value in self._figures:
            table.add_row(what, value)
        out.print()
        out.print(table)

    # Small things ---------------------------------------------------------------------------------

    @property
    def _vms(self) -> str:
        return f"/v1/iaas/{IAAS}/vms"

    @property
    def _volumes(self) -> str:
        return f"/v1/iaas/{IAAS}/volumes"

    def _vm(self, name: str) -> dict[str, object] | None:
        for row in rows_of(self._user.get(self._vms)):
            value = inner(row, "value")
            if value["name"] == name:
                return value
        return None

    def _require(self, name: str) -> dict[str, object]:
        vm = self._vm(name)
        if vm is None:
            raise Unavailable(f"{name} is not there")
        return vm

    def _until(self, name: str, state: str, *, at_site: str = "", not_on: str = "") -> None:
        def reached() -> bool:
            vm = self._require(name)
            if vm["state"] == "failed" or (vm["failure"] and vm["state"] == "running"):
                raise Unavailable(f"{name}: {vm['failure']}")
            is_there = not at_site or vm["site_id"] == at_site
            return vm["state"] == state and is_there and vm["node_id"] != not_on

        with out.status(f"{name} …"):
            self._wait(reached, f"{name} to be {state}")

    def _wait(self, is_done: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not is_done():
            if time.monotonic() > deadline_s:
                raise TimedOut(what, after_s=WAIT_S, hint="nuage events --last 30")
            time.sleep(POLL_S)  # noqa: TID251 - a person waits

    def _event(self, matches: Callable[[str], bool]) -> str:
        for line in reversed(rows_of(self._admin.get("/v1/events", follow="0", last=200))):
            if matches(str(line["text"])):
                return str(line["text"])
        return ""

    def _site_row(self, client: Client, site: str) -> dict[str, object]:
        for row in rows_of(client.get("/v1/sites")):
            if inner(row, "datacenter")["site_id"] == site:
                return row
        raise Unavailable(f"{site} is not known")

    def _is_reachable(self, client: Client, site: str) -> bool:
        return bool(self._site_row(client, site)["reachable"])


NEXT: Final = """
Try next (the federation goes on running):
  nuage vm list                      nuage vm explain web1
  nuage volume where web1-boot       nuage events --follow
  nuage vm attach web1               nuage lab status
  nuage --profile lab-france-marne site list
  nuage lab cut lyon                 nuage lab down
"""


def run(name: str, *, once: bool) -> None:
    """Run the main job in the lab of that name; take it down at the end if it is for once."""
    lab = Lab.open(DEFAULT_DESCRIPTION, None, name=name)
    begin = time.monotonic()
    demo = Demo(lab)
    try:
        demo.run()
        out.print(f"\nthe whole run took [bold]{time.monotonic() - begin:.0f} s[/]")
    finally:
        if once:
            with out.status("taking everything down"):
                lab.destroy()
            disband(lab.description.name)
    if not once:
        click.echo(NEXT)
