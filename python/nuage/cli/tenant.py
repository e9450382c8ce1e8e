"""An IaaS as a script uses it: wait for its machines, type on their consoles, ask until heard.

For demos, system tests and benchmarks. What a guest prints is what a user would see: commands are
typed on its console and their output is read there.
"""

import secrets
import time
from dataclasses import dataclass
from typing import Final

from nuage.api.client import Client
from nuage.api.console_client import Console
from nuage.cli.console import wait_for_text
from nuage.cli.showing import inner, row_of, rows_of
from nuage.errors import Conflict, NotFound, NuageError, TimedOut

BOOT_WAIT_S: Final = 120.0
STATE_WAIT_S: Final = 120.0
CONSOLE_WAIT_S: Final = 20.0
HEAR_WAIT_S: Final = 60.0  # feeds, wishes, registers: seconds; a loaded machine takes longer
POLL_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Tenant:
    """One IaaS and who administers it."""

    user: Client
    iaas: str

    def path(self, name: str) -> str:
        """Return the API's path of a VM."""
        return f"/v1/iaas/{self.iaas}/vms/{name}"

    def vm(self, name: str) -> dict[str, object]:
        """Return a VM."""
        return inner(row_of(self.user.get(self.path(name))), "value")

    def address(self, name: str) -> str:
        """Return the first address of a VM's port.

        Raises:
            NotFound: its port has none.
        """
        vm_id = self.vm(name)["vm_id"]
        for row in rows_of(self.user.get(f"/v1/iaas/{self.iaas}/ports")):
            port = inner(row, "value")
            addresses = port["addresses"]
            if port["vm_id"] == vm_id and isinstance(addresses, list) and addresses:
                return str(addresses[0]).partition("/")[0]
        raise NotFound("address", name)

    def create(self, name: str, *, image: str, site: str) -> None:
        """Ask for a VM at a site, unless there is one of that name."""
        listed = rows_of(self.user.get(f"/v1/iaas/{self.iaas}/vms"))
        if not any(inner(row, "value")["name"] == name for row in listed):
            body = {"name": name, "image": image, "site": site}
            self.user.call("POST", f"/v1/iaas/{self.iaas}/vms", body)

    def move(self, name: str, site: str) -> None:
        """Migrate a VM to a site, and wait until it runs there."""
        self.user.call("POST", f"{self.path(name)}/migrate", {"site": site})
        self.until(name, site=site)

    def until(self, name: str, *, site: str = "", state: str = "running") -> None:
        """Wait until a VM is in `state`, at `site` if one is named.

        Raises:
            Conflict: its move to `site` failed; it runs where it was.
            TimedOut: it never is; the hint is the VM's own failure.
        """
        deadline_s = time.monotonic() + STATE_WAIT_S
        while True:
            vm = self.vm(name)
            if vm["state"] == state and site in ("", vm["site_id"]):
                return
            if site and vm["state"] == "running" and vm["failure"]:
                raise Conflict(f"{name}: {vm['failure']}")
            if time.monotonic() > deadline_s:
                raise TimedOut(
                    f"{name}, to be {state}", after_s=STATE_WAIT_S, hint=str(vm["failure"])
                )
            time.sleep(POLL_S)  # noqa: TID251 - waits for a process

    def until_booted(self, name: str) -> None:
        """Wait until a new VM's guest has said that it is ready.

        Raises:
            TimedOut: it has not.
        """
        self.until(name)
        path = f"{self.path(name)}/console"
        if not wait_for_text(self.user, path, " ready ", after=0, timeout_s=BOOT_WAIT_S):
            raise TimedOut(f"boot of {name}", after_s=BOOT_WAIT_S)

    def until_it_has_a_shell(self, name: str) -> None:
        """Wait until a VM's guest does what is typed.

        Raises:
            NuageError: it does not.
        """
        deadline_s = time.monotonic() + BOOT_WAIT_S
        while True:
            try:
                self.type(name, "true")
            except NuageError:
                if time.monotonic() > deadline_s:
                    raise
            else:
                return

    def start_anew(self, name: str) -> None:
        """Stop a VM whatever its guest does, start it, and wait for its shell."""
        self.user.call("POST", f"{self.path(name)}/stop", {})
        self.until(name, state="stopped")
        self.user.call("POST", f"{self.path(name)}/start", {})
        self.until(name)
        self.until_it_has_a_shell(name)

    def type(self, name: str, command: str, *, wait_s: float = CONSOLE_WAIT_S) -> str:
        """Type a command on a VM's console; return what it printed.

        Raises:
            TimedOut: the guest does not answer.
        """
        mark = secrets.token_hex(4)
        # The quotes keep the echo of what is typed from looking like the marks.
        text = f"echo b''{mark}; {command}; echo e''{mark}\n"
        with Console(self.user, self.path(name), after_bytes=-1) as console:
            console.type(text)
            told = console.wait_for(f"e{mark}", wait_s)
        return told.rpartition(f"b{mark}")[2].partition(f"e{mark}")[0]

    def answers(self, asker: str, address: str) -> bool:
        """Tell whether `address` answers a VM's ping."""
        told = self.type(asker, f"ping -c 3 -W 2 {address} | tail -3")
        return " 0 packets received" not in told

    def put(self, path: str, body: dict[str, object]) -> None:
        """Ask until the site that answers has heard of what another site made.

        Raises:
            NuageError: it never has; what it said last.
        """
        deadline_s = time.monotonic() + HEAR_WAIT_S
        while True:
            try:
                self.user.call("PUT", path, body)
            except NuageError:
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(POLL_S)  # noqa: TID251 - waits for a feed
            else:
                return
