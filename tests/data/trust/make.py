"""Write the certificates and lists beside this file, which the Rust core's tests read.

They are the product's own, so both sides are tested against one another; only public parts
are kept.
Run `python -m tests.data.trust.make`.
"""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nuage.channel.identity import Identity
from nuage.ids import FederationId, NodeId, SiteId
from nuage.model.infrastructure import NodeRole
from nuage.trust import pki
from nuage.trust.revocation import make_revocation_list

HERE = Path(__file__).parent
NOW_S = 1_800_000_000.0
FRANCE, OTHER = FederationId("france"), FederationId("otherland")
MARNE, LYON = SiteId("marne"), SiteId("lyon")


def site_authority(root: pki.Authority, federation: FederationId, site: SiteId) -> pki.Authority:
    key = Ed25519PrivateKey.generate()
    certificate = pki.issue_site_authority(
        root, key.public_key(), federation_id=federation, site_id=site, now_s=NOW_S
    )
    return pki.Authority(certificate, key)


def write_leaf(name: str, authority: pki.Authority, identity: Identity) -> int:
    key = Ed25519PrivateKey.generate().public_key()
    leaf = pki.issue_daemon(authority, key, identity, now_s=NOW_S)
    (HERE / f"{name}.pem").write_text(pki.pem_of(leaf, authority.certificate))
    return leaf.serial_number


def main() -> None:
    root, other_root = pki.make_root(FRANCE, NOW_S), pki.make_root(OTHER, NOW_S)
    marne, lyon = (site_authority(root, FRANCE, site) for site in (MARNE, LYON))
    foreign = site_authority(other_root, OTHER, MARNE)
    (HERE / "root.pem").write_text(pki.pem_of(root.certificate))
    io1 = write_leaf("io1", marne, Identity(FRANCE, MARNE, NodeRole.IONODE, NodeId("marne-io1")))
    write_leaf("io2", lyon, Identity(FRANCE, LYON, NodeRole.IONODE, NodeId("lyon-io1")))
    write_leaf("foreign", foreign, Identity(OTHER, MARNE, NodeRole.IONODE, NodeId("marne-io1")))
    # A site that issues for another one: its authority is constrained to its own names.
    write_leaf("overreach", marne, Identity(FRANCE, LYON, NodeRole.IONODE, NodeId("lyon-io1")))
    forger = pki.Authority(marne.certificate, Ed25519PrivateKey.generate())
    lists = {
        "marne1": (marne, [], 1),
        "marne2": (marne, [io1], 2),
        "root1": (root, [lyon.certificate.serial_number], 1),
        "forged": (forger, [io1], 9),
    }
    for name, (issuer, serials, number) in lists.items():
        text = make_revocation_list(issuer, serials, number=number, now_s=NOW_S)
        (HERE / f"{name}.crl.pem").write_text(text)


if __name__ == "__main__":
    main()
