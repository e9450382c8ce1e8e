//! What can go wrong between us and the kernel, with libbpf's own words where it has any.

use std::io;
use std::path::PathBuf;

/// A refusal by libbpf or the kernel.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The kernel does not take the object: too old, no privilege, or the verifier objects.
    #[error("the kernel did not load the programs: {source}\n{log}")]
    Load {
        log: String,
        #[source]
        source: io::Error,
    },
    /// The directory for pins is not on a BPF file system, or not ours to write.
    #[error("cannot pin below {}: {source}", path.display())]
    Pin {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// No map or program has this name.
    #[error("no {kind} {name:?} in the object")]
    NoSuch { kind: &'static str, name: String },
    /// Keys or values are not a whole number of what the map holds.
    #[error("map {map}: {found} bytes of {what} are no multiple of {size}")]
    Size {
        map: String,
        what: &'static str,
        found: usize,
        size: usize,
    },
    /// C and Rust disagree about a structure: the crate was built from two versions.
    #[error(
        "map {map} holds {key_size}-byte keys and {value_size}-byte values, unlike this program"
    )]
    Layout {
        map: String,
        key_size: u32,
        value_size: u32,
    },
    /// The map has no room left.
    #[error("map {map} is full")]
    Full { map: String },
    /// Any other failed operation.
    #[error("cannot {doing}: {source}")]
    System {
        doing: String,
        #[source]
        source: io::Error,
    },
}

impl BpfError {
    pub(crate) fn system(doing: impl Into<String>, source: io::Error) -> Self {
        Self::System {
            doing: doing.into(),
            source,
        }
    }
}
