//! The loader of the kernel programs in `bpf/`: open, load, pin, attach, and their maps as bytes.
//!
//! Not a control plane: what stands in the maps is decided in `python/nuage/network`. Programs and
//! maps are pinned below a directory on a BPF file system, so they go on while nobody runs us; a
//! later `Plane::open` finds the pinned maps again and puts fresh programs on them.
//!
//! ```text
//! <directory>/v<INTF_VERSION>/maps/<map>        reused when there
//! <directory>/v<INTF_VERSION>/programs/<name>   replaced at each open
//! ```

mod error;
mod ffi;
pub mod intf;
mod log;
mod pins;
mod plane;
mod ring;

pub use error::BpfError;
pub use pins::forget_others;
pub use plane::{Hook, MapShape, Plane, probe};
