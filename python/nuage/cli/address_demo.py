"""The demo's public address: a VM gets one, and a host on the internet talks to it as it moves."""

import itertools
import os
import re
import signal
import subprocess
import tempfile
import time
from typing import Final

from nuage.api.client import Client
from nuage.cli.showing import inner, row_of, rows_of
from nuage.cli.tenant import HEAR_WAIT_S, Tenant
from nuage.errors import TimedOut
from nuage.lab import addresses as at
from nuage.lab.lab import Lab

GROUP: Final = "public"
INTERVAL_MS: Final = 20
HEAR_MORE_S: Final = 8.0
TEXT_BYTES_MAX: Final = 1 << 20  # a quarter of an hour of answers


def give_address(tenant: Tenant, lab: Lab, admin: Client, *, vm: str, site: str) -> str:
    """Give a VM a public address that is open to everybody; return it."""
    user, addresses = tenant.user, f"/v1/iaas/{tenant.iaas}/addresses"
    prefix = at.public_prefix(lab.description)
    if not rows_of(admin.get("/v1/address-pools")):
        admin.call("POST", "/v1/address-pools", {"name": "public", "prefix": prefix, "site": site})
    address = str(row_of(user.call("POST", addresses, {}))["id"])
    groups = f"/v1/iaas/{tenant.iaas}/security-groups"
    if not any(inner(row, "value")["name"] == GROUP for row in rows_of(user.get(groups))):
        user.call("POST", groups, {"group": GROUP, "rules": [{"protocol": "any"}]})
    tenant.put(f"{tenant.path(vm)}/port", {"groups": [GROUP]})
    tenant.put(f"{addresses}/{address}/port", {"vm": vm})
    return address


class OutsidePing:
    """A ping from the host that is nobody's."""

    def __init__(self, lab: Lab, address: str) -> None:
        self._address = address
        self._inside = ("ip", "netns", "exec", at.namespace(lab.description.name, at.OUTSIDE))
        self._process: subprocess.Popen[bytes] | None = None

    def reaches(self) -> bool:
        """Tell whether one packet is answered within a second."""
        words = (*self._inside, "ping", "-n", "-c", "1", "-W", "1", self._address)
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    def wait(self) -> float:
        """Wait until the address answers; return how many seconds that took."""
        begun_s = time.monotonic()
        while not self.reaches():
            if time.monotonic() - begun_s > HEAR_WAIT_S:
                raise TimedOut(f"{self._address}, to answer from outside", after_s=HEAR_WAIT_S)
        return time.monotonic() - begun_s

    def start(self) -> None:
        """Ask every `INTERVAL_MS` from now on."""
        words = (*self._inside, "ping", "-n", "-i", str(INTERVAL_MS / 1000), self._address)
        self._told = tempfile.TemporaryFile()  # noqa: SIM115 - read and closed by `stop`
        self._process = subprocess.Popen(words, stdout=self._told)

    def until_it_hears(self, count: int) -> None:
        """Wait until there are `count` more answers, for `HEAR_MORE_S` at most."""
        deadline_s = time.monotonic() + HEAR_MORE_S
        wanted = len(self._heard()) + count
        while len(self._heard()) < wanted and time.monotonic() < deadline_s:
            time.sleep(INTERVAL_MS / 1000)  # noqa: TID251 - waits for a process

    def _text(self) -> str:
        return os.pread(self._told.fileno(), TEXT_BYTES_MAX, 0).decode()

    def _heard(self) -> list[int]:
        return [int(number) for number in re.findall(r"seq=(\d+) ttl", self._text())]

    def stop(self) -> float:
        """Stop; return the longest gap in milliseconds.

        Raises:
            TimedOut: nothing was answered at all.
        """
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait()
        with self._told:
            text, heard = self._text(), self._heard()
        if not heard:
            raise TimedOut(f"{self._address}, to answer from outside", after_s=HEAR_WAIT_S)
        steps = [after - before for before, after in itertools.pairwise(heard)]
        sent = re.search(r"(\d+) packets transmitted", text)
        if sent is not None:  # a silence that did not end is the longest of all
            steps.append(int(sent.group(1)) - heard[-1] + 1)
        return float(max(steps, default=1) * INTERVAL_MS)
