"""What a host outside is told of its volume: login, paths, and what its administrator may paste."""

from typing import Final

import click

from nuage.cli.showing import Row, listed, print_facts, print_table

# By group, the serving one first; a path that is without head is known by its state (ALUA).
MULTIPATH: Final = """\
devices {
  device {
    vendor "NUAGE"
    product ".*"
    path_grouping_policy "group_by_prio"
    prio "alua"
    hardware_handler "1 alua"
    path_checker "tur"
    failback "immediate"
    no_path_retry 60
  }
}"""


def tell_paths(paths: list[Row]) -> None:
    """Print by which portals a host reaches its volume, and which serves."""
    rows = [
        (path["portal"] or "not yet", path["node"], path["site"], path["group"], path["state"])
        for path in paths
    ]
    print_table(("PORTAL", "NODE", "SITE", "GROUP", "PATH"), rows, empty="no path yet")


def tell_access(access: Row) -> None:
    """Print how a host logs in, as facts and as commands of open-iscsi and multipath-tools."""
    paths = listed(access, "paths")
    facts = [(name, access[name]) for name in ("iqn", "initiator", "user", "secret")]
    proof: list[tuple[str, object]] = []
    if access.get("target_user"):
        facts += [
            (name.replace("_", " "), access[name]) for name in ("target_user", "target_secret")
        ]
        proof = [
            ("node.session.auth.username_in", access["target_user"]),
            ("node.session.auth.password_in", access["target_secret"]),
        ]
    print_facts(facts)
    tell_paths(paths)
    click.echo("\n# on the host")
    click.echo(f"echo InitiatorName={access['initiator']} > /etc/iscsi/initiatorname.iscsi")
    node = f"iscsiadm -m node -T {access['iqn']}"
    for path in paths:
        if path["portal"]:
            click.echo(f"{node} -p {path['portal']},{path['group']} -o new")
    for key, value in (
        ("node.session.auth.authmethod", "CHAP"),
        ("node.session.auth.username", access["user"]),
        ("node.session.auth.password", access["secret"]),
        *proof,
        ("node.session.timeo.replacement_timeout", "5"),
        ("node.startup", "automatic"),
    ):
        click.echo(f"{node} -o update -n {key} -v {value}")
    click.echo(f"{node} --login")
    if len(paths) > 1:
        click.echo("\n# in /etc/multipath.conf, before the login")
        click.echo(MULTIPATH)
