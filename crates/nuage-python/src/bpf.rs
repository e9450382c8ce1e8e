//! `nuage._core.BpfPlane`: the kernel programs and their maps, as bytes.

use nuage_bpf::{BpfError, Hook, Plane};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The loaded programs (crates/nuage-bpf).
#[pyclass(module = "nuage._core", frozen)]
pub struct BpfPlane {
    plane: Mutex<Plane>,
}

const NO_SPACE: i32 = 28;

/// A full map is ENOSPC, a refusal of the kernel its own number, a mistake of ours `ValueError`.
#[expect(
    clippy::needless_pass_by_value,
    reason = "map_err hands the error over"
)]
fn refused(error: BpfError) -> PyErr {
    let text = error.to_string();
    match &error {
        BpfError::Full { .. } => PyOSError::new_err((NO_SPACE, text)),
        BpfError::Load { source, .. }
        | BpfError::Pin { source, .. }
        | BpfError::System { source, .. } => {
            PyOSError::new_err((source.raw_os_error().unwrap_or(0), text))
        }
        BpfError::NoSuch { .. } | BpfError::Size { .. } | BpfError::Layout { .. } => {
            PyValueError::new_err(text)
        }
    }
}

fn hook_of(egress: bool) -> Hook {
    if egress { Hook::Egress } else { Hook::Ingress }
}

impl BpfPlane {
    fn held(&self) -> MutexGuard<'_, Plane> {
        self.plane.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type BytesPair<'py> = (Bound<'py, PyBytes>, Bound<'py, PyBytes>);

#[pymethods]
impl BpfPlane {
    #[new]
    fn new(py: Python<'_>, directory: &str) -> PyResult<Self> {
        let plane = py
            .allow_threads(|| Plane::open(Path::new(directory)))
            .map_err(refused)?;
        Ok(Self {
            plane: Mutex::new(plane),
        })
    }

    fn map_sizes(&self) -> Vec<(String, usize, usize)> {
        let plane = self.held();
        let maps = plane.maps().iter();
        maps.map(|(name, shape)| (name.clone(), shape.key_size, shape.value_size))
            .collect()
    }

    fn update(&self, py: Python<'_>, map: &str, keys: &[u8], values: &[u8]) -> PyResult<()> {
        py.allow_threads(|| self.held().update(map, keys, values))
            .map_err(refused)
    }

    fn delete(&self, py: Python<'_>, map: &str, keys: &[u8]) -> PyResult<usize> {
        py.allow_threads(|| self.held().delete(map, keys))
            .map_err(refused)
    }

    fn lookup<'py>(
        &self,
        py: Python<'py>,
        map: &str,
        key: &[u8],
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let value = self.held().lookup(map, key).map_err(refused)?;
        Ok(value.map(|bytes| PyBytes::new(py, &bytes)))
    }

    fn items<'py>(&self, py: Python<'py>, map: &str) -> PyResult<BytesPair<'py>> {
        let (keys, values) = py
            .allow_threads(|| self.held().items(map))
            .map_err(refused)?;
        Ok((PyBytes::new(py, &keys), PyBytes::new(py, &values)))
    }

    fn renew_flows(&self, py: Python<'_>, port: u32) -> PyResult<()> {
        py.allow_threads(|| self.held().renew_flows(port))
            .map_err(refused)
    }

    #[pyo3(signature = (program, ifindex, *, egress = false, priority = 1))]
    fn attach(&self, program: &str, ifindex: i32, egress: bool, priority: u32) -> PyResult<()> {
        self.held()
            .attach(program, ifindex, hook_of(egress), priority)
            .map_err(refused)
    }

    #[pyo3(signature = (ifindex, *, egress = false, priority = 1))]
    fn detach(&self, ifindex: i32, egress: bool, priority: u32) -> PyResult<()> {
        self.held()
            .detach(ifindex, hook_of(egress), priority)
            .map_err(refused)
    }

    #[pyo3(signature = (program, ifindex, *, flags = 0))]
    fn attach_xdp(&self, program: &str, ifindex: i32, flags: u32) -> PyResult<()> {
        self.held()
            .attach_xdp(program, ifindex, flags)
            .map_err(refused)
    }

    fn detach_xdp(&self, ifindex: i32) -> PyResult<()> {
        self.held().detach_xdp(ifindex).map_err(refused)
    }

    fn event_descriptor(&self) -> i32 {
        self.held().event_descriptor()
    }

    fn events<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        let records = self.held().events();
        records
            .iter()
            .map(|bytes| PyBytes::new(py, bytes))
            .collect()
    }
}

/// Return why this kernel does not take the programs, or nothing when it does.
#[pyfunction]
pub fn bpf_refusal(py: Python<'_>) -> Option<String> {
    py.allow_threads(nuage_bpf::probe)
        .err()
        .map(|error| error.to_string())
}

/// Unpin planes of other layouts below `directory` that none of `ports` (interfaces) uses; return
/// their names.
#[pyfunction]
pub fn bpf_forget_others(
    py: Python<'_>,
    directory: &str,
    ports: Vec<i32>,
) -> PyResult<Vec<String>> {
    py.allow_threads(move || nuage_bpf::forget_others(Path::new(directory), &ports))
        .map_err(refused)
}
