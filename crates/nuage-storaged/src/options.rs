//! The command line. Secrets never come this way: argv is readable by everybody.

use crate::disks::BasePlace;
use nuage_io::socket::Endpoint;
use nuage_io::tls::TlsFiles;
use std::path::PathBuf;

pub const USAGE: &str = "\
usage: nuage-storaged --dir DIR --control SOCKET [options]

  --dir DIR               where volumes live (one directory each), and what the daemon keeps for itself
  --disk NAME=DIR         a further disk for volumes, by the name that requests give; repeat
  --base [NAME=]DIR       a large disk: what compaction writes goes there, the log stays where it is; with the
                          name of a disk (\"=DIR\": the first), receipts tell it so
  --old-base NAME=DIR     where it went before; repeat. A volume that has a part elsewhere stays closed
  --lost-base DIR         where it went to a disk that was declared lost; repeat. A volume that has a part there is
                          put aside and made anew, once a head elsewhere wants it
  --all-disks             no disk is away that ever was in service, but for those that were declared lost: base
                          segments to which no journal leads are removed at the start
  --control SOCKET        Unix socket for control requests (created, mode 0600)
  --iscsi ADDR:PORT,…     iSCSI portals; numeric addresses
  --advertise HOST:PORT,… portals that discovery names (default: where the session came in)
  --portal-group TAG      target portal group tag, 1 to 65535, this IO-node's own (default 1)
  --nbd ADDR:PORT,…       NBD doors; also unix:PATH
  --replica ADDR:PORT     door for the heads of other IO-nodes, and for iSCSI of V-nodes at other sites,
                          TLS 1.3 with both certificates
  --clear-from FILE       networks and addresses, one a line, from where iSCSI is taken in clear;
                          the file is read anew for each connection (default: from everywhere)
  --tls-cert FILE --tls-key FILE --tls-ca FILE
  --tls-crl FILE          revocation lists (PEM) of the root and of all sites; certificate, key and
                          lists are read again when they change
  --uid UID --gid GID     change to this user and group once the sockets are bound
  --log-format text|json  form of the log on standard error (default text)
  --version, --help";

/// Everything the command line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub dir: PathBuf,
    /// Further disks for volumes, by name.
    pub disks: Vec<(String, PathBuf)>,
    /// Where base segments go; absent: beside the log.
    pub base: Option<BasePlace>,
    /// Where those of some volumes still lie.
    pub old_bases: Vec<BasePlace>,
    /// Those are on disks that were declared lost.
    pub lost_bases: Vec<PathBuf>,
    /// None is away that ever was in service, but for those that were declared lost.
    pub all_disks: bool,
    pub control: PathBuf,
    pub iscsi: Vec<Endpoint>,
    pub advertise: Vec<String>,
    pub portal_group: u16,
    pub nbd: Vec<Endpoint>,
    pub clear_from: Option<PathBuf>,
    pub replica: Option<Endpoint>,
    pub tls: Option<TlsFiles>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub log_json: bool,
}

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Serve(Box<Options>),
    Help,
    Version,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    #[error("unknown argument {0:?}")]
    Unknown(String),
    #[error("{0} needs a value")]
    NoValue(String),
    #[error("{option}: {value:?} is not {wanted}")]
    Invalid {
        option: &'static str,
        value: String,
        wanted: &'static str,
    },
    #[error("{0} is missing")]
    Missing(&'static str),
}

fn endpoints(option: &'static str, value: &str) -> Result<Vec<Endpoint>, OptionsError> {
    let wanted = "a list of ADDRESS:PORT or unix:PATH";
    let invalid = |_| OptionsError::Invalid {
        option,
        value: value.to_owned(),
        wanted,
    };
    value
        .split(',')
        .map(|item| item.parse().map_err(invalid))
        .collect()
}

fn disk(value: &str) -> Result<(String, PathBuf), OptionsError> {
    match value.split_once('=') {
        Some((name, dir)) if !name.is_empty() && !dir.is_empty() => {
            Ok((name.to_owned(), PathBuf::from(dir)))
        }
        _ => Err(OptionsError::Invalid {
            option: "--disk",
            value: value.to_owned(),
            wanted: "NAME=DIR",
        }),
    }
}

/// A disk's name never has a slash.
fn base(value: &str) -> BasePlace {
    let named = value.split_once('=');
    match named.filter(|(name, _)| !name.contains('/')) {
        Some((name, dir)) => BasePlace::new(Some(name), PathBuf::from(dir)),
        None => BasePlace::new(None, PathBuf::from(value)),
    }
}

fn number<T: std::str::FromStr>(option: &'static str, value: &str) -> Result<T, OptionsError> {
    let wanted = "a number in range";
    value.parse().map_err(|_| OptionsError::Invalid {
        option,
        value: value.to_owned(),
        wanted,
    })
}

/// Read the arguments after the program's name.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Command, OptionsError> {
    let mut arguments = arguments.into_iter();
    let (mut dir, mut control, mut replica, mut base_place) = (None, None, None, None);
    let (mut disks, mut old_bases, mut lost_bases) = (Vec::new(), Vec::new(), Vec::new());
    let (mut cert, mut key, mut ca, mut crl) = (None, None, None, None);
    let (mut uid, mut gid, mut clear_from) = (None, None, None);
    let (mut iscsi, mut nbd, mut advertise) = (Vec::new(), Vec::new(), Vec::new());
    let (mut portal_group, mut log_json, mut all_disks) = (1, false, false);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--all-disks" => {
                all_disks = true;
                continue;
            }
            "--help" | "-h" => return Ok(Command::Help),
            "--version" => return Ok(Command::Version),
            _ => {}
        }
        let mut value = || {
            arguments
                .next()
                .ok_or_else(|| OptionsError::NoValue(argument.clone()))
        };
        match argument.as_str() {
            "--dir" => dir = Some(PathBuf::from(value()?)),
            "--disk" => disks.push(disk(&value()?)?),
            "--base" => base_place = Some(base(&value()?)),
            "--old-base" => old_bases.push(base(&value()?)),
            "--lost-base" => lost_bases.push(PathBuf::from(value()?)),
            "--control" => control = Some(PathBuf::from(value()?)),
            "--iscsi" => iscsi = endpoints("--iscsi", &value()?)?,
            "--advertise" => advertise = value()?.split(',').map(str::to_owned).collect(),
            "--portal-group" => portal_group = number("--portal-group", &value()?)?,
            "--nbd" => nbd = endpoints("--nbd", &value()?)?,
            "--replica" => replica = endpoints("--replica", &value()?)?.into_iter().next(),
            "--tls-cert" => cert = Some(PathBuf::from(value()?)),
            "--tls-key" => key = Some(PathBuf::from(value()?)),
            "--tls-ca" => ca = Some(PathBuf::from(value()?)),
            "--tls-crl" => crl = Some(PathBuf::from(value()?)),
            "--clear-from" => clear_from = Some(PathBuf::from(value()?)),
            "--uid" => uid = Some(number("--uid", &value()?)?),
            "--gid" => gid = Some(number("--gid", &value()?)?),
            "--log-format" => {
                let value = value()?;
                log_json = match value.as_str() {
                    "json" => true,
                    "text" => false,
                    _ => {
                        let wanted = "text or json";
                        return Err(OptionsError::Invalid {
                            option: "--log-format",
                            value,
                            wanted,
                        });
                    }
                };
            }
            _ => return Err(OptionsError::Unknown(argument)),
        }
    }
    let tls = match (cert, key, ca) {
        (Some(cert), Some(key), Some(ca)) => Some(TlsFiles { cert, key, ca, crl }),
        (None, None, None) if replica.is_none() && crl.is_none() => None,
        _ => {
            return Err(OptionsError::Missing(
                "one of --tls-cert, --tls-key, --tls-ca",
            ));
        }
    };
    Ok(Command::Serve(Box::new(Options {
        dir: dir.ok_or(OptionsError::Missing("--dir"))?,
        disks,
        base: base_place,
        old_bases,
        lost_bases,
        all_disks,
        control: control.ok_or(OptionsError::Missing("--control"))?,
        iscsi,
        advertise,
        portal_group,
        nbd,
        clear_from,
        replica,
        tls,
        uid,
        gid,
        log_json,
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Command, OptionsError> {
        parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn portals_and_doors_are_lists() {
        let Ok(Command::Serve(options)) =
            words("--dir /d --control /c --iscsi 127.0.0.1:3260,[::1]:3260 --nbd unix:/n")
        else {
            panic!("refused");
        };
        assert_eq!(options.iscsi.len(), 2);
        assert_eq!(options.nbd, [Endpoint::Unix("/n".into())]);
    }

    #[test]
    fn disks_have_names() {
        let Ok(Command::Serve(options)) = words(
            "--dir /d --control /c --disk d1=/e --disk d2=/f --base d2=/g --old-base =/h --lost-base /i --all-disks",
        ) else {
            panic!("refused");
        };
        assert_eq!(options.disks[1], ("d2".to_owned(), "/f".into()));
        let place = |disk: &str, dir: &str| BasePlace {
            disk: Some(disk.to_owned()),
            dir: dir.into(),
        };
        assert_eq!(options.base, Some(place("d2", "/g")));
        assert_eq!(options.old_bases, [place("", "/h")]);
        assert_eq!(options.lost_bases, [PathBuf::from("/i")]);
        assert!(options.all_disks);
        assert!(words("--dir /d --control /c --disk /e").is_err());
    }

    #[test]
    fn a_replica_door_without_certificates_and_unknown_words_are_refused() {
        assert!(words("--dir /d --control /c --replica 127.0.0.1:1").is_err());
        assert_eq!(
            words("--secret x"),
            Err(OptionsError::Unknown("--secret".into()))
        );
        assert_eq!(words("--control /c"), Err(OptionsError::Missing("--dir")));
    }
}
