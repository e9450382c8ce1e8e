//! `nuage._core.PlacementEngine`: numbers in, numbers out.

use nuage_placement::{CURVE_POINTS, Curve, Engine, EngineError, NodeSpec, Request};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// The placement engine's hot loop (crates/nuage-placement).
#[pyclass(module = "nuage._core")]
pub struct PlacementEngine {
    engine: Engine,
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "map_err hands the error over"
)]
fn refused(error: EngineError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

fn request((class, contract, group): (u32, u32, u32)) -> Request {
    Request {
        class,
        contract,
        group,
    }
}

#[pymethods]
impl PlacementEngine {
    #[new]
    fn new() -> Self {
        Self {
            engine: Engine::new(),
        }
    }

    #[pyo3(signature = (watts, *, waking_watts = 0.0))]
    fn add_curve(&mut self, watts: Vec<f64>, waking_watts: f64) -> PyResult<u32> {
        let watts = watts
            .try_into()
            .map_err(|_| PyValueError::new_err(format!("a curve has {CURVE_POINTS} points")))?;
        Ok(self.engine.add_curve(Curve {
            watts,
            waking_watts,
        }))
    }

    fn add_branch(&mut self, limit_watts: f64) -> u32 {
        self.engine.add_branch(limit_watts)
    }

    fn add_container(&mut self, site: u32, limit_watts: f64) -> u32 {
        self.engine.add_container(site, limit_watts)
    }

    #[pyo3(signature = (*, curve, branch, cpu_count, vcpu_free, memory_free_mib, booted = true, in_service = true))]
    #[expect(clippy::too_many_arguments, reason = "all are named on Python's side")]
    fn add_node(
        &mut self,
        curve: u32,
        branch: u32,
        cpu_count: u32,
        vcpu_free: u32,
        memory_free_mib: u32,
        booted: bool,
        in_service: bool,
    ) -> PyResult<u32> {
        let spec = NodeSpec {
            curve,
            branch,
            cpu_count,
            vcpu_free,
            memory_free_mib,
            booted,
            in_service,
        };
        self.engine.add_node(spec).map_err(refused)
    }

    fn add_class(&mut self, vcpu_count: u32, memory_mib: u32) -> u32 {
        self.engine.add_class(vcpu_count, memory_mib)
    }

    #[expect(clippy::needless_pass_by_value, reason = "PyO3 hands over a list")]
    fn add_contract(&mut self, sites: Vec<u32>) -> u32 {
        self.engine.add_contract(&sites)
    }

    fn set_weight(&mut self, site: u32, weight: f64) -> PyResult<()> {
        self.engine.set_weight(site, weight).map_err(refused)
    }

    fn set_scores(&mut self, class_: u32, scores: Option<Vec<f64>>) -> PyResult<()> {
        self.engine.set_scores(class_, scores).map_err(refused)
    }

    fn set_in_service(&mut self, node: u32, in_service: bool) -> PyResult<()> {
        self.engine
            .set_in_service(node, in_service)
            .map_err(refused)
    }

    /// (node, score), or None when nobody can.
    fn place(&mut self, class_: u32, contract: u32, group: u32) -> PyResult<Option<(u32, f64)>> {
        let answer = self
            .engine
            .place(request((class_, contract, group)))
            .map_err(refused)?;
        Ok(answer.ok().map(|placed| (placed.node, placed.score)))
    }

    /// The node of each (class, contract, group), -1 where nobody can.
    fn place_many(&mut self, py: Python<'_>, requests: Vec<(u32, u32, u32)>) -> PyResult<Vec<i64>> {
        py.allow_threads(|| {
            let mut nodes = Vec::with_capacity(requests.len());
            for wanted in requests {
                let answer = self.engine.place(request(wanted)).map_err(refused)?;
                nodes.push(answer.map_or(-1, |placed| i64::from(placed.node)));
            }
            Ok(nodes)
        })
    }

    fn release(&mut self, class_: u32, contract: u32, group: u32, node: u32) -> PyResult<()> {
        self.engine
            .release(request((class_, contract, group)), node)
            .map_err(refused)
    }

    /// False, and nothing has changed, if `to` has no room.
    #[pyo3(signature = (class_, contract, group, *, from_node, to_node))]
    fn migrate(
        &mut self,
        class_: u32,
        contract: u32,
        group: u32,
        from_node: u32,
        to_node: u32,
    ) -> PyResult<bool> {
        self.engine
            .migrate(request((class_, contract, group)), from_node, to_node)
            .map_err(refused)
    }

    /// How many nodes refuse, by rule.
    fn refusals(
        &self,
        class_: u32,
        contract: u32,
        group: u32,
    ) -> PyResult<Vec<(&'static str, u32)>> {
        let told = self
            .engine
            .refusals(request((class_, contract, group)))
            .map_err(refused)?;
        Ok(vec![
            ("contract", told.contract),
            ("out_of_service", told.out_of_service),
            ("vcpu", told.vcpu),
            ("memory", told.memory),
            ("apart", told.apart),
            ("electrical", told.electrical),
        ])
    }

    /// (vCPUs free, memory free in MiB, VMs, watts) of a node.
    fn node(&self, node: u32) -> PyResult<(u32, u32, u32, f64)> {
        self.engine.node(node).map_err(refused)
    }

    fn node_count(&self) -> usize {
        self.engine.node_count()
    }

    /// Watts of each site.
    fn site_watts(&self) -> Vec<f64> {
        self.engine.site_watts()
    }

    fn switch_off(&mut self, node: u32) -> PyResult<bool> {
        self.engine.switch_off(node).map_err(refused)
    }

    fn power_watts(&self) -> f64 {
        self.engine.power_watts()
    }
}
