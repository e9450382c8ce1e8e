"""What a site publishes about itself for the others to believe it."""

from dataclasses import dataclass

from nuage.ids import SiteId


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteTrust:
    """A site's authority, signing keys and revocations; travels with the feeds.

    Every part is signed from the federation's root down, so it does not matter who brings it.
    `audit_seal` is the last sealed line of the site's audit log: whoever keeps it can tell when
    the log was cut short or written anew (docs/protocols/audit.md). The highest `key_generation` of
    all sites says which keys the fabric uses (`iaas.fabric_keys`). `secret_generation` names the
    newest of the controllers' secrets that this site holds (`trust.shared_secrets`).
    """

    site_id: SiteId
    authority_pem: str
    signers_pem: str
    revocations_pem: str
    root_revocations_pem: str = ""
    audit_seal: str = ""
    key_generation: int = 0
    secret_generation: int = 0
