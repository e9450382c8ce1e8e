//! `nuage._core`: a thin skin over the Rust core. Only bytes, numbers, strings and small frozen
//! classes cross; no Python object enters the core.

use pyo3::prelude::*;

mod bpf;
mod placement;

#[pymodule]
mod _core {
    #[pymodule_export]
    const VERSION: &str = env!("CARGO_PKG_VERSION");

    #[pymodule_export]
    use super::bpf::{BpfPlane, bpf_forget_others, bpf_refusal};
    #[pymodule_export]
    use super::placement::PlacementEngine;
}
