//! Addresses, listeners and streams, TCP and Unix.

use nuage_block::Buffer;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::fmt;
use std::io::{self, IoSlice};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

/// Silence after which the kernel probes a peer, and how often it then does: a dead initiator's
/// session is found in a minute.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_PROBE: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;
/// So long may bytes to another daemon go without an answer of its kernel. Left to itself TCP tries for a quarter of
/// an hour, ever more seldom: a line that is whole again would lie idle for minutes.
const UNANSWERED_MS_MAX: u32 = 15_000;

/// `HOST:PORT` or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither ADDRESS:PORT (a numeric address) nor unix:PATH")]
pub struct EndpointError(pub String);

impl std::str::FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Self::Unix(PathBuf::from(path))),
            _ => text
                .parse()
                .map(Self::Tcp)
                .map_err(|_| EndpointError(text.to_owned())),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(formatter),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A socket that accepts; a Unix socket's file is removed with it.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
    pub endpoint: Endpoint,
}

impl Listener {
    /// Bind. A Unix socket is open to its owner only (0600); a stale file is replaced.
    pub fn bind(endpoint: &Endpoint) -> io::Result<Self> {
        let (kind, endpoint) = match endpoint {
            Endpoint::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                let bound = listener.local_addr()?;
                (Kind::Tcp(listener), Endpoint::Tcp(bound))
            }
            Endpoint::Unix(path) => {
                if std::os::unix::net::UnixStream::connect(path).is_ok() {
                    return Err(io::ErrorKind::AddrInUse.into());
                }
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
                let listener = UnixListener::bind(path);
                rustix::process::umask(before);
                let listener = listener?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
                listener.set_nonblocking(true)?;
                (Kind::Unix(listener), endpoint.clone())
            }
        };
        Ok(Self { kind, endpoint })
    }

    /// One waiting connection; `None`: there is none.
    pub fn accept(&self) -> io::Result<Option<Stream>> {
        let accepted = match &self.kind {
            Kind::Tcp(listener) => listener.accept().and_then(|(stream, peer)| {
                stream.set_nodelay(true)?;
                stream.set_nonblocking(true)?;
                let local = stream.local_addr()?.to_string();
                let fd = OwnedFd::from(stream);
                keep_alive(&fd)?;
                Ok(Stream {
                    fd,
                    local,
                    peer: Some(peer),
                })
            }),
            Kind::Unix(listener) => listener.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(true)?;
                Ok(Stream {
                    fd: OwnedFd::from(stream),
                    local: self.endpoint.to_string(),
                    peer: None,
                })
            }),
        };
        match accepted {
            Ok(stream) => Ok(Some(stream)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn keep_alive(fd: &OwnedFd) -> io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(fd, true)?;
    sockopt::set_tcp_keepidle(fd, KEEPALIVE)?;
    sockopt::set_tcp_keepintvl(fd, KEEPALIVE_PROBE)?;
    sockopt::set_tcp_keepcnt(fd, KEEPALIVE_PROBES)?;
    Ok(())
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Tcp(listener) => listener.as_fd(),
            Kind::Unix(listener) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Endpoint::Unix(path) = &self.endpoint {
            // Best effort: the next bind removes a stale file too.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A connected, non-blocking socket.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
    /// Our own address, for discovery.
    pub local: String,
    /// The other end's; none on a Unix socket.
    pub peer: Option<SocketAddr>,
}

/// What a read or write came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    Bytes(usize),
    /// Nothing now.
    Later,
    /// The peer is gone.
    Gone,
}

impl Stream {
    /// Begin to connect; the socket becomes writable when that has ended, well or not.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
        let family = if address.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&fd, true)?;
        keep_alive(&fd)?;
        let stream = Self {
            fd,
            local: address.to_string(),
            peer: Some(address),
        };
        stream.expect_answers()?;
        match connect(&stream.fd, &address) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(stream),
            Err(error) => Err(error.into()),
        }
    }

    /// Give the connection up once the peer's kernel answers nothing for some seconds.
    pub fn expect_answers(&self) -> io::Result<()> {
        Ok(rustix::net::sockopt::set_tcp_user_timeout(
            &self.fd,
            UNANSWERED_MS_MAX,
        )?)
    }

    /// Where this connection was going before this machine's packet filter led it here.
    pub fn original(&self) -> Option<SocketAddr> {
        rustix::net::sockopt::ip_original_dst(&self.fd)
            .ok()
            .map(SocketAddr::V4)
    }

    pub fn read(&self, buffer: &mut [u8]) -> Moved {
        match rustix::io::read(&self.fd, buffer) {
            Ok(0) => Moved::Gone,
            Ok(count) => Moved::Bytes(count),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Moved::Later,
            Err(_) => Moved::Gone,
        }
    }

    /// Read up to `count` bytes to the end of `into`.
    pub fn read_to(&self, into: &mut Buffer, count: usize) -> Moved {
        into.reserve_exact(count);
        let room = &mut into.spare_capacity_mut()[..count];
        match rustix::io::read(&self.fd, room) {
            Ok(([], _)) => Moved::Gone,
            Ok((read, _)) => {
                let length = read.len();
                // SAFETY: that many bytes behind the former end have just been written by the kernel.
                unsafe { into.set_len(into.len() + length) };
                Moved::Bytes(length)
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Moved::Later,
            Err(_) => Moved::Gone,
        }
    }

    pub fn write(&self, slices: &[IoSlice<'_>]) -> Moved {
        match rustix::io::writev(&self.fd, slices) {
            Ok(count) => Moved::Bytes(count),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Moved::Later,
            Err(_) => Moved::Gone,
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
