"""Who logs in is let in, whatever was taken down since they got their roles."""

from typing import cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.unit.iaas.iaas_makers import record

from nuage.clock import SystemClock
from nuage.daemon.access import Access
from nuage.iaas.dismantling import with_past
from nuage.iaas.index import FederationIndex
from nuage.ids import FederationId, IaasId, SiteId, UserId
from nuage.model.contract import Contract
from nuage.model.iaas import Iaas, PastIaas
from nuage.model.identity import Grant, Role, User
from nuage.trust.permissions import Principal
from nuage.trust.secrets import hash_secret
from nuage.trust.tokens import TokenChecker, TokenIssuer

MARNE = SiteId("marne")
SECRET = "correct horse battery"
GONE = tuple(IaasId(f"iaas-{number:016x}") for number in range(400))
THERE = IaasId("iaas-ffffffffffffffff")


async def test_roles_on_what_is_gone_are_in_no_token_and_still_prove_its_past() -> None:
    """An older version left people a role on each IaaS that was taken down."""
    roles = (*(Grant(Role.AUDITOR, iaas_id) for iaas_id in GONE), Grant(Role.IAAS_USER, THERE))
    ada = User(user_id=UserId("user-1"), name="ada", grants=roles, secret_hash=hash_secret(SECRET))
    index = FederationIndex(MARNE)
    index.put(record(ada))
    index.put(record(Iaas(iaas_id=THERE, name="shop", owner="x", contract=Contract(), label=1)))
    for iaas_id in GONE:
        past = PastIaas(iaas_id=iaas_id, name="old", owner="x", contract=Contract(), deleted_s=1.0)
        index.put(record(past))
    key = Ed25519PrivateKey.generate()
    issuer = TokenIssuer(federation_id=FederationId("fr"), site_id=MARNE, key=lambda: key)
    access = Access(
        checker_keys=cast(TokenChecker, None), issuer=issuer, index=index, clock=SystemClock()
    )
    token = await access.issue("ada", SECRET)
    assert len(token) < 1000
    who = Principal(ada.user_id, "ada", (Grant(Role.IAAS_USER, THERE),))
    assert set(with_past(index, who).grants) == set(roles)
