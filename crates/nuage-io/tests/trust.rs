//! Which certificates the links between IO-nodes accept. The files are the trust room's own
//! (tests/data/trust/make.py).
#![allow(clippy::unwrap_used)]

use nuage_io::path::{Identity, Judges, PathError};
use nuage_io::revocation::Lists;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::path::{Path, PathBuf};

const MADE_S: i64 = 1_800_000_000;
const DAY_S: i64 = 86_400;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/data/trust")
        .join(name)
}

fn chain(name: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(file(name))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap()
}

fn lists(names: &[&str]) -> Lists {
    let pem: Vec<u8> = names
        .iter()
        .flat_map(|name| std::fs::read(file(&format!("{name}.crl.pem"))).unwrap())
        .collect();
    Lists::parse(&pem).unwrap()
}

fn verdict(name: &str, lists: &Lists, now_s: i64) -> Result<Identity, PathError> {
    let shown = chain(name);
    let judges = Judges {
        roots: &chain("root.pem"),
        lists,
    };
    judges.check(&shown[0], &shown[1..], now_s)
}

#[test]
fn a_daemon_of_the_federation_is_known_by_its_name() {
    let identity = verdict("io1.pem", &Lists::default(), MADE_S).unwrap();
    assert_eq!(
        (identity.site.as_str(), identity.node.as_str()),
        ("marne", "marne-io1")
    );
}

#[test]
fn another_federation_another_site_and_another_time_are_refused() {
    let none = Lists::default();
    assert_eq!(
        verdict("foreign.pem", &none, MADE_S),
        Err(PathError::NoPath)
    );
    assert_eq!(
        verdict("overreach.pem", &none, MADE_S),
        Err(PathError::Constrained)
    );
    assert_eq!(
        verdict("io1.pem", &none, MADE_S + 8 * DAY_S),
        Err(PathError::NotNow)
    );
    assert_eq!(
        verdict("io1.pem", &none, MADE_S - 8 * DAY_S),
        Err(PathError::NotNow)
    );
}

#[test]
fn a_path_without_its_authority_or_with_too_many_leads_nowhere() {
    let (shown, roots, lists) = (chain("io1.pem"), chain("root.pem"), Lists::default());
    let judges = Judges {
        roots: &roots,
        lists: &lists,
    };
    assert_eq!(judges.check(&shown[0], &[], MADE_S), Err(PathError::NoPath));
    let many = vec![shown[1].clone(); 5];
    assert_eq!(
        judges.check(&shown[0], &many, MADE_S),
        Err(PathError::NoPath)
    );
    let noise = CertificateDer::from(vec![0x30, 0x82, 0xff, 0xff, 1, 2, 3]);
    assert_eq!(
        judges.check(&noise, &shown[1..], MADE_S),
        Err(PathError::Unreadable)
    );
}

#[test]
fn who_the_newest_list_names_is_revoked() {
    assert!(verdict("io1.pem", &lists(&["marne1"]), MADE_S).is_ok());
    for order in [["marne1", "marne2"], ["marne2", "marne1"]] {
        assert_eq!(
            verdict("io1.pem", &lists(&order), MADE_S),
            Err(PathError::Revoked)
        );
        assert!(verdict("io2.pem", &lists(&order), MADE_S).is_ok());
    }
}

#[test]
fn with_its_site_all_of_a_sites_daemons_are_revoked() {
    let revoked = lists(&["root1"]);
    assert_eq!(
        verdict("io2.pem", &revoked, MADE_S),
        Err(PathError::Revoked)
    );
    assert!(verdict("io1.pem", &revoked, MADE_S).is_ok());
}

#[test]
fn a_list_that_its_issuer_did_not_sign_revokes_nobody_and_hides_no_other() {
    assert!(verdict("io1.pem", &lists(&["forged"]), MADE_S).is_ok());
    let both = lists(&["marne2", "forged"]);
    assert_eq!(verdict("io1.pem", &both, MADE_S), Err(PathError::Revoked));
}

#[test]
fn a_lost_or_older_list_un_revokes_nobody() {
    let known = lists(&["marne2"]);
    for fresh in [Lists::default(), lists(&["marne1"]), lists(&["root1"])] {
        let joined = fresh.beside(&known);
        assert_eq!(verdict("io1.pem", &joined, MADE_S), Err(PathError::Revoked));
    }
}

#[test]
fn an_open_link_ends_by_a_list_and_not_by_its_age() {
    let (shown, roots) = (chain("io1.pem"), chain("root.pem"));
    for (names, ends) in [
        (vec![], false),
        (vec!["marne1"], false),
        (vec!["marne2"], true),
    ] {
        let judges = Judges {
            roots: &roots,
            lists: &lists(&names),
        };
        assert_eq!(judges.revoke(&shown[0], &shown[1..]), ends);
    }
}

#[test]
fn what_is_no_list_is_refused_as_a_whole() {
    assert!(Lists::parse(b"").unwrap().is_empty());
    assert!(Lists::parse(b"noise").is_err());
    assert!(Lists::parse(&std::fs::read(file("root.pem")).unwrap()).is_err());
    let mut cut = std::fs::read(file("marne2.crl.pem")).unwrap();
    cut.truncate(cut.len() / 2);
    assert!(Lists::parse(&cut).is_err());
    assert!(Lists::load(&file("absent")).is_err());
}
