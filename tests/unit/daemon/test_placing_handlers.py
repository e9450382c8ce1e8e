"""What an elected site does for another's Master Agent."""

from nuage.channel import Handlers
from nuage.clock import SystemClock
from nuage.daemon.placing import BIDS_METHOD, COMMIT_METHOD, LocalPlacing
from nuage.ids import SiteId
from nuage.model.infrastructure import Datacenter, Operator
from nuage.placement.local_agent import LocalAgent
from nuage.placement.policies import PolicyBook


def test_a_commitment_runs_to_its_end_when_the_asking_site_is_lost() -> None:
    datacenter = Datacenter(
        site_id=SiteId("marne"), place="Marne", country="FR", operator=Operator("Marne", "FR"),
        tier=3, power_capacity_watts=18_000.0,
    )  # fmt: skip
    handlers = Handlers()
    agent = LocalAgent(datacenter, policies=PolicyBook())

    LocalPlacing(agent, SystemClock()).register(handlers)

    assert handlers.runs_to_end(COMMIT_METHOD)
    assert not handlers.runs_to_end(BIDS_METHOD)
