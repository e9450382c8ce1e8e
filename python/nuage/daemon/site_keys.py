"""The site's own keys in its controller: asked of the root, published, told. Wiring."""

from collections.abc import Callable
from typing import Final

from nuage.daemon.trust_desk import TrustDesk
from nuage.errors import Unavailable
from nuage.iaas.site import Site
from nuage.model.trust import SiteTrust
from nuage.trust.renewal import RenewAnswer, RenewRequest
from nuage.trust.site_renewal import RENEW_AUTHORITY_METHOD, SiteRenewal, renewed_authority
from nuage.trust.store import TrustStore

ASK_TIMEOUT_S: Final = 5.0


def site_renewal(
    store: TrustStore, desk: TrustDesk, site: Site, seal_line: Callable[[], str]
) -> SiteRenewal:
    """Return what keeps the keys of `site` fresh; `seal_line` is its audit log's last seal."""

    async def ask_root(request: RenewRequest) -> RenewAnswer:
        if store.holds_root:
            now_s = site.clock.now_s()
            return renewed_authority(store, desk.book, site.site_id, request, now_s=now_s)
        founders = (t.site_id for t in site.index.values(SiteTrust) if t.root_revocations_pem)
        founder = min(founders, default=site.site_id)
        if founder == site.site_id:
            raise Unavailable(
                "the root's key is not here", hint="bring federation/root.key back from its safe"
            )
        return await site.others.ask(
            founder, RENEW_AUTHORITY_METHOD, request, RenewAnswer, timeout_s=ASK_TIMEOUT_S
        )

    async def publish() -> None:
        desk.take(store.site_trust())  # before a token of the new key comes back to us
        await desk.publish(site, seal_line())

    def announce(what: str, text: str) -> None:
        site.announce("site", site.site_id, what, text)

    return SiteRenewal(store, site.clock, ask_root, publish, announce)
