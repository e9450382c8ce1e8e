"""The demo's part on storage: a file brought back, its places proven, a head lost under load.

Everything is asked of the API as a person would ask it; figures are measured. Used by
`nuage lab demo`, which gives the words a form.
"""

import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol

from nuage.api.client import Client
from nuage.api.console_client import Console
from nuage.cli.console import wait_for_text
from nuage.cli.showing import inner, listed, row_of, rows_of
from nuage.errors import NuageError, TimedOut
from nuage.trust.verify import told_proof, verify_proof

WAIT_S: Final = 120.0
POLL_S: Final = 0.05
TYPE_WAIT_S: Final = 60.0
LOAD: Final = (
    "(i=0; while true; do i=$((i+1)); echo $i > /data/count; sync; echo {mark}$i; done) &\n"
)
STOP_LOAD: Final = "kill $!\n"  # Ctrl-C goes unheard by a shell that waits for a write


class PowersNodes(Protocol):
    """What the demo does to the hardware (`lab.lab.Lab`)."""

    def kill(self, node: str, *, wait: bool = True) -> None:
        """Cut a node's power."""
        ...

    def power_on(self, node: str, *, wait: bool = True) -> None:
        """Give it back."""
        ...


@dataclass(frozen=True, slots=True)
class Telling:
    """How the demo tells: the title of a step, a fact, a measured figure."""

    say: Callable[[str], None]
    note: Callable[[str], None]
    figure: Callable[[str, str], None]


class StorageDemo:
    """The storage steps on a running VM that boots from the volume ``<vm>-boot``."""

    def __init__(
        self, client: Client, lab: PowersNodes, telling: Telling, *, iaas: str, vm: str
    ) -> None:
        self._client = client
        self._lab = lab
        self._tell = telling
        self._vm_name = vm
        self._mark = ""
        self._vm = f"/v1/iaas/{iaas}/vms/{vm}"
        self._volume = f"/v1/iaas/{iaas}/volumes/{vm}-boot"

    # A file comes back ----------------------------------------------------------------------------

    def go_back(self) -> Callable[[], None]:
        """Write a file in the guest, mark, damage it, and go back to the moment before.

        Return what waits until the guest has started again, and has it read the file.
        """
        self._tell.say(f"{self._vm_name} loses a file, and its disk goes back to the moment before")
        self._wake()
        word = f"precious-{secrets.token_hex(4)}"
        self._run(f"echo {word} > /data/letter; sync; cat /data/letter", word)
        marked = row_of(self._client.call("POST", f"{self._volume}/marks", {"name": "all is well"}))
        sequence = next(iter(inner(marked, "sequences").values()))
        self._tell.note(f"the guest wrote {word}; marked at write #{sequence}")
        self._run("echo ruined > /data/letter; sync; cat /data/letter", "ruined")
        self._tell.note("then it was overwritten, and that was made durable too")
        self._client.call("POST", f"{self._vm}/stop")
        self._until_vm("stopped")
        begun_s = time.monotonic()
        self._client.call("POST", f"{self._volume}/rollback", {"sequence": sequence})
        took_ms = (time.monotonic() - begun_s) * 1000
        self._tell.figure("disk taken back", f"{took_ms:.0f} ms")
        after = self._console_end()
        self._client.call("POST", f"{self._vm}/start")
        self._tell.note(f"{self._vm_name} starts again, while the story goes on")
        return lambda: self._reads_again(word, after=after)

    def _reads_again(self, word: str, *, after: int) -> None:
        self._until_vm("running")
        self._shell_is_there(after=after)
        self._run("cat /data/letter", word)
        self._tell.note(
            f"{self._vm_name} has started, and reads {word} again; what came since is still in the "
            "journal"
        )

    # Its places are proven ------------------------------------------------------------------------

    def prove(self) -> None:
        """Take a proof along, verify it with public keys alone, and change one byte of it."""
        self._tell.say("Where the bytes were is proven, and verified without the product")
        answer = row_of(self._client.get(f"{self._volume}/proof"))
        document = str(answer["document"]).encode()
        report = verify_proof(document)
        for line in told_proof(report):
            self._tell.note(line.strip())
        self._tell.figure("receipts proven", str(report.receipt_count))
        changed = bytearray(document)
        changed[len(changed) // 2] ^= 1
        found = "is found" if not verify_proof(bytes(changed)).is_sound else "IS NOT FOUND"
        self._tell.note(f"one bit changed in {len(document)} bytes: {found}")

    # A head is lost under load --------------------------------------------------------------------

    def lose_the_head(self) -> Callable[[], None]:
        """Cut the power of the head's IO-node while the guest writes, and go on.

        Return what waits until the node's copy is whole again, and tells so.
        """
        head, others = self._head(), self._others()
        if not others:
            self._tell.note("the volume has one copy: nothing could go on without its node")
            return lambda: None
        self._tell.say(f"The IO-node {head} loses its power while {self._vm_name} writes")
        self._mark = f"written-{secrets.token_hex(2)}-"  # not an earlier run's
        self._type(LOAD.format(mark=self._mark))
        self._wait(lambda: self._count() > 3, "the guest to write")
        begun_s = time.monotonic()
        self._lab.kill(head)
        on_s = self._go_on_without(head, begun_s)
        self._tell.figure("writes go on after a head's loss", f"after {on_s:.1f} s")
        self._type(STOP_LOAD)
        self._tell.note(f"the head is on {self._head()} now; the guest has not noticed")
        self._lab.power_on(head, wait=False)
        self._tell.note(f"{head} gets its power back; its copy catches up while the story goes on")
        pool = ThreadPoolExecutor(1)
        took_s = pool.submit(self._until_whole, head, time.monotonic())
        pool.shutdown(wait=False)
        return lambda: self._tell.figure(
            f"{head} back, its copy up to date", f"after {took_s.result():.1f} s"
        )

    def _until_whole(self, head: str, begun_s: float) -> float:
        """Return how long it took until every copy had all."""
        self._wait(self._is_whole, f"the copy on {head} to be brought up to date")
        return time.monotonic() - begun_s

    def _go_on_without(self, lost: str, begun_s: float) -> float:
        """Return how long after the loss a write ended under the next head."""
        moved, served = False, -1
        deadline_s = begun_s + WAIT_S
        while time.monotonic() < deadline_s:
            after_s = time.monotonic() - begun_s
            if not moved and self._head() != lost:
                moved = True
                self._tell.note(f"a head opens on {self._head()} after {after_s:.1f} s")
                self._degrade(lost)
            if moved and served < 0 and self._serves():
                served = self._count()
            elif 0 <= served < self._count():
                return time.monotonic() - begun_s
            _pause()
        raise TimedOut("writes to go on", after_s=WAIT_S)

    def _serves(self) -> bool:
        value = self._value()
        return value["settled_epoch"] == value["epoch"]

    def _degrade(self, lost: str) -> None:
        """Decide to go on with what is left, where the policy would wait for the lost copy."""
        try:
            self._client.call("POST", f"{self._volume}/degrade", {"without": lost})
        except NuageError as error:
            self._tell.note(f"no decision was needed: {error.message}")
        else:
            self._tell.note(f"decided, and kept in the audit log: it goes on without {lost}")

    def _is_whole(self) -> bool:
        value = self._value()
        in_flux = any(listed(value, name) for name in ("without", "catching_up", "leaving"))
        return not in_flux and value["settled_epoch"] == value["epoch"]

    # Small things ---------------------------------------------------------------------------------

    def _value(self) -> dict[str, object]:
        return inner(row_of(self._client.get(self._volume)), "value")

    def _head(self) -> str:
        return str(self._value()["head"])

    def _others(self) -> list[str]:
        value = self._value()
        nodes = [str(row["node_id"]) for row in rows_of(value["replicas"])]
        return [node for node in nodes if node != value["head"]]

    def _console_end(self) -> int:
        answer = row_of(self._client.get(f"{self._vm}/console", bytes_max=1))
        return int(str(answer["total_bytes"]))

    def _type(self, text: str) -> None:
        with Console(self._client, self._vm) as console:
            console.type(text)

    def _run(self, command: str, expected: str) -> None:
        """Type a command and wait for a line of its output."""
        with Console(self._client, self._vm, after_bytes=-1) as console:
            console.type(f"{command}\n")
            console.wait_for(f"\n{expected}", TYPE_WAIT_S)

    def _wake(self) -> None:
        """Have a shell; a guest that does not answer starts anew."""
        after = self._console_end()
        try:
            self._type("\n")
            self._shell_is_there(after=after)
        except TimedOut:
            self._tell.note(f"{self._vm_name} does not answer; it is started anew")
            self._client.call("POST", f"{self._vm}/stop")
            self._until_vm("stopped")
            after = self._console_end()
            self._client.call("POST", f"{self._vm}/start")
            self._until_vm("running")
            self._shell_is_there(after=after)

    def _shell_is_there(self, *, after: int) -> None:
        path = f"{self._vm}/console"
        prompt = f"{self._vm_name}:/#"
        if not wait_for_text(self._client, path, prompt, after=after, timeout_s=WAIT_S):
            raise TimedOut(f"{self._vm_name} to show a prompt", after_s=WAIT_S)

    def _count(self) -> int:
        """Return the last number that the guest says it has written."""
        text = str(row_of(self._client.get(f"{self._vm}/console", bytes_max=2048))["text"])
        numbers = [part.split()[0] for part in text.split(self._mark)[1:-1] if part.split()]
        whole = [int(number) for number in numbers if number.isdecimal()]
        return max(whole, default=0)

    def _until_vm(self, state: str) -> None:
        def reached() -> bool:
            return inner(row_of(self._client.get(self._vm)), "value")["state"] == state

        self._wait(reached, f"{self._vm_name} to be {state}")

    def _wait(self, is_done: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not is_done():
            if time.monotonic() > deadline_s:
                raise TimedOut(what, after_s=WAIT_S, hint="nuage events --last 30")
            _pause()


def _pause() -> None:
    time.sleep(POLL_S)  # noqa: TID251 - a person watches
