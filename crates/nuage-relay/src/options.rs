//! The command line.

use nuage_io::socket::Endpoint;
use nuage_io::tls::TlsFiles;
use std::net::SocketAddr;
use std::path::PathBuf;

pub const USAGE: &str = "\
usage: nuage-relay --listen ADDR:PORT --control SOCKET --tls-cert FILE --tls-key FILE --tls-ca FILE [options]

  --listen ADDR:PORT      where the packet filter leads connections to portals at other sites; on loopback
  --control SOCKET        Unix socket for the agent's words (created, mode 0600)
  --tls-cert FILE --tls-key FILE --tls-ca FILE
  --tls-crl FILE          revocation lists (PEM); certificate, key and lists are read again when they change
  --uid UID --gid GID     change to this user and group once the sockets are bound
  --version, --help";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub listen: Endpoint,
    pub control: PathBuf,
    pub tls: TlsFiles,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    Serve(Box<Options>),
    Help,
    Version,
}

/// Read the arguments after the program's name; the error says what is wrong with them.
pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Command, String> {
    let mut arguments = arguments.into_iter();
    let (mut listen, mut control, mut uid, mut gid) = (None, None, None, None);
    let (mut cert, mut key, mut ca, mut crl) = (None, None, None, None);
    while let Some(name) = arguments.next() {
        match name.as_str() {
            "--help" | "-h" => return Ok(Command::Help),
            "--version" => return Ok(Command::Version),
            _ => {}
        }
        let value = arguments.next();
        let value = value.ok_or_else(|| format!("{name} needs a value"))?;
        let wrong = || format!("{name}: {value:?} will not do");
        let number = || value.parse().map(Some).map_err(|_| wrong());
        let path = || Some(PathBuf::from(&value));
        match name.as_str() {
            "--listen" => {
                let address: SocketAddr = value.parse().map_err(|_| wrong())?;
                // Whoever reaches it speaks in clear.
                if !address.ip().is_loopback() {
                    return Err(format!("{name}: {value:?} is not on loopback"));
                }
                listen = Some(Endpoint::Tcp(address));
            }
            "--control" => control = path(),
            "--tls-cert" => cert = path(),
            "--tls-key" => key = path(),
            "--tls-ca" => ca = path(),
            "--tls-crl" => crl = path(),
            "--uid" => uid = number()?,
            "--gid" => gid = number()?,
            _ => return Err(format!("unknown argument {name:?}")),
        }
    }
    let missing = |name: &str| format!("{name} is missing");
    Ok(Command::Serve(Box::new(Options {
        listen: listen.ok_or_else(|| missing("--listen"))?,
        control: control.ok_or_else(|| missing("--control"))?,
        tls: TlsFiles {
            cert: cert.ok_or_else(|| missing("--tls-cert"))?,
            key: key.ok_or_else(|| missing("--tls-key"))?,
            ca: ca.ok_or_else(|| missing("--tls-ca"))?,
            crl,
        },
        uid,
        gid,
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Result<Command, String> {
        parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn it_listens_on_loopback_alone_and_never_without_certificates() {
        let tls = "--control c --tls-cert a --tls-key b --tls-ca d";
        assert!(words(&format!("--listen 127.0.0.1:29000 {tls} --uid 7")).is_ok());
        assert!(words(&format!("--listen 0.0.0.0:29000 {tls}")).is_err());
        assert!(words("--listen 127.0.0.1:29000 --control c").is_err());
        assert!(words(&format!("--listen 127.0.0.1:29000 {tls} --secret x")).is_err());
    }
}
