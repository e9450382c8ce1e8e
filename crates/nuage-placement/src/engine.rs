//! Two-level search: the best node of each container, the best of the containers.
//!
//! Invariants: a remembered best of (class, container) is right whenever its version equals the
//! container's; every change inside a container raises that version. Equal scores go to the
//! lower node number, so the answer equals that of a scan over all nodes.

use std::collections::HashMap;
use std::ops::Range;

use crate::curve::Curve;

/// A node, numbered in the order of [`Engine::add_node`].
pub type NodeId = u32;
/// A container, numbered in the order of [`Engine::add_container`].
pub type ContainerId = u32;
/// A class of VMs of one size.
pub type ClassId = u32;
/// A set of sites that a contract allows.
pub type ContractId = u32;

/// What the engine was told wrongly.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EngineError {
    #[error("there is no {what} {number}")]
    Unknown { what: &'static str, number: u32 },
    #[error("a node needs a container: add one first")]
    NoContainer,
    #[error("branch {0} lies in another container")]
    BranchElsewhere(u32),
    #[error("{found} scores for {needed} nodes")]
    ScoreCount { needed: usize, found: usize },
    #[error("node {0} holds less than is given back")]
    NothingHeld(NodeId),
}

/// A node as it is added.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NodeSpec {
    pub curve: u32,
    pub branch: u32,
    pub cpu_count: u32,
    pub vcpu_free: u32,
    pub memory_free_mib: u32,
    pub booted: bool,
    pub in_service: bool,
}

/// What to place. `group` other than 0: no two of a group on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub class: ClassId,
    pub contract: ContractId,
    pub group: u32,
}

/// Where it was placed, and its score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placed {
    pub node: NodeId,
    pub score: f64,
}

/// Nobody could: how many nodes each rule refused (the first rule that a node breaks counts).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    pub contract: u32,
    pub out_of_service: u32,
    pub vcpu: u32,
    pub memory: u32,
    pub apart: u32,
    pub electrical: u32,
}

#[derive(Clone, Debug)]
struct Node {
    spec: NodeSpec,
    container: ContainerId,
    vcpu_used: u32,
    power_watts: f64,
    vm_count: u32,
}

#[derive(Clone, Debug)]
struct Container {
    site: u32,
    nodes: Range<u32>,
    limit_watts: f64,
    power_watts: f64,
    version: u64,
}

/// A branch lies in the container of its first node.
#[derive(Clone, Debug)]
struct Branch {
    limit_watts: f64,
    power_watts: f64,
    container: Option<ContainerId>,
}

#[derive(Clone, Copy, Debug)]
struct Best {
    version: u64,
    score: f64,
    node: NodeId,
}

const UNKNOWN: Best = Best {
    version: 0,
    score: f64::INFINITY,
    node: NodeId::MAX,
};

#[derive(Clone, Debug)]
struct Class {
    vcpu_count: u32,
    memory_mib: u32,
    best: Vec<Best>,
    scores: Option<Vec<f64>>,
}

/// The table of all nodes and what each container remembers.
#[derive(Clone, Debug, Default)]
pub struct Engine {
    curves: Vec<Curve>,
    branches: Vec<Branch>,
    weights: Vec<f64>,
    containers: Vec<Container>,
    nodes: Vec<Node>,
    classes: Vec<Class>,
    contracts: Vec<Vec<bool>>,
    groups: HashMap<(u32, NodeId), u32>,
}

impl Engine {
    /// An engine without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Add a power curve; return its number.
    pub fn add_curve(&mut self, curve: Curve) -> u32 {
        self.curves.push(curve);
        count(self.curves.len()) - 1
    }

    /// Add an electrical branch that may carry `limit_watts`; return its number.
    pub fn add_branch(&mut self, limit_watts: f64) -> u32 {
        self.branches.push(Branch {
            limit_watts,
            power_watts: 0.0,
            container: None,
        });
        count(self.branches.len()) - 1
    }

    /// Add a container of `site` that may draw `limit_watts`; nodes added next stand in it.
    pub fn add_container(&mut self, site: u32, limit_watts: f64) -> ContainerId {
        let begin = count(self.nodes.len());
        self.containers.push(Container {
            site,
            nodes: begin..begin,
            limit_watts,
            power_watts: 0.0,
            version: 1,
        });
        if self.weights.len() <= site as usize {
            self.weights.resize(site as usize + 1, 1.0);
        }
        for class in &mut self.classes {
            class.best.push(UNKNOWN);
        }
        count(self.containers.len()) - 1
    }

    /// Add a node to the last container; return its number.
    pub fn add_node(&mut self, spec: NodeSpec) -> Result<NodeId, EngineError> {
        let curve = self
            .curves
            .get(spec.curve as usize)
            .ok_or(unknown("curve", spec.curve))?;
        let branch = self
            .branches
            .get_mut(spec.branch as usize)
            .ok_or(unknown("branch", spec.branch))?;
        let number = count(self.containers.len())
            .checked_sub(1)
            .ok_or(EngineError::NoContainer)?;
        if *branch.container.get_or_insert(number) != number {
            return Err(EngineError::BranchElsewhere(spec.branch));
        }
        let container = &mut self.containers[number as usize];
        let power_watts = if spec.booted { curve.at(0.0) } else { 0.0 };
        branch.power_watts += power_watts;
        container.power_watts += power_watts;
        container.nodes.end += 1;
        container.version += 1;
        self.nodes.push(Node {
            spec,
            container: number,
            vcpu_used: 0,
            power_watts,
            vm_count: 0,
        });
        Ok(count(self.nodes.len()) - 1)
    }

    /// Add a class of VMs; return its number.
    pub fn add_class(&mut self, vcpu_count: u32, memory_mib: u32) -> ClassId {
        let best = vec![UNKNOWN; self.containers.len()];
        self.classes.push(Class {
            vcpu_count,
            memory_mib,
            best,
            scores: None,
        });
        count(self.classes.len()) - 1
    }

    /// Add a contract that allows `sites`; return its number.
    pub fn add_contract(&mut self, sites: &[u32]) -> ContractId {
        let most = sites.iter().copied().max().unwrap_or(0) as usize;
        let mut allowed = vec![false; most + 1];
        for &site in sites {
            allowed[site as usize] = true;
        }
        self.contracts.push(allowed);
        count(self.contracts.len()) - 1
    }

    /// Set what a watt at `site` weighs now: PUE, × price, or × carbon.
    pub fn set_weight(&mut self, site: u32, weight: f64) -> Result<(), EngineError> {
        let slot = self
            .weights
            .get_mut(site as usize)
            .ok_or(unknown("site", site))?;
        *slot = weight;
        Ok(())
    }

    /// Rank a class by a policy's own scores, one per node; None returns to marginal watts.
    pub fn set_scores(
        &mut self,
        class: ClassId,
        scores: Option<Vec<f64>>,
    ) -> Result<(), EngineError> {
        let needed = self.nodes.len();
        let slot = self
            .classes
            .get_mut(class as usize)
            .ok_or(unknown("class", class))?;
        if let Some(found) = scores
            .as_ref()
            .map(Vec::len)
            .filter(|&found| found != needed)
        {
            return Err(EngineError::ScoreCount { needed, found });
        }
        slot.scores = scores;
        slot.best.fill(UNKNOWN);
        Ok(())
    }

    /// Take a node into service or out of it.
    pub fn set_in_service(&mut self, node: NodeId, in_service: bool) -> Result<(), EngineError> {
        let slot = self
            .nodes
            .get_mut(node as usize)
            .ok_or(unknown("node", node))?;
        slot.spec.in_service = in_service;
        self.containers[slot.container as usize].version += 1;
        Ok(())
    }

    /// How many nodes there are.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// vCPUs and memory (MiB) left on a node, its VMs and its watts.
    pub fn node(&self, node: NodeId) -> Result<(u32, u32, u32, f64), EngineError> {
        let found = self.nodes.get(node as usize).ok_or(unknown("node", node))?;
        let spec = &found.spec;
        Ok((
            spec.vcpu_free,
            spec.memory_free_mib,
            found.vm_count,
            found.power_watts,
        ))
    }

    /// All watts, before the facility's overhead.
    pub fn power_watts(&self) -> f64 {
        self.containers
            .iter()
            .map(|container| container.power_watts)
            .sum()
    }

    /// Watts of each site, before its overhead.
    pub fn site_watts(&self) -> Vec<f64> {
        let mut watts = vec![0.0; self.weights.len()];
        for container in &self.containers {
            watts[container.site as usize] += container.power_watts;
        }
        watts
    }

    /// Switch an empty node off: it draws nothing until a VM wakes it. False if it holds one.
    pub fn switch_off(&mut self, node: NodeId) -> Result<bool, EngineError> {
        let slot = self
            .nodes
            .get_mut(node as usize)
            .ok_or(unknown("node", node))?;
        if slot.vm_count > 0 {
            return Ok(false);
        }
        slot.spec.booted = false;
        let saved_watts = std::mem::take(&mut slot.power_watts);
        self.branches[slot.spec.branch as usize].power_watts -= saved_watts;
        let container = &mut self.containers[slot.container as usize];
        container.power_watts -= saved_watts;
        container.version += 1;
        Ok(true)
    }

    /// Choose the best node, take its room, and return it; or count who refused by which rule.
    pub fn place(&mut self, request: Request) -> Result<Result<Placed, Refused>, EngineError> {
        self.check(request)?;
        let Some(placed) = self.search(request) else {
            return Ok(Err(self.count_refusals(request)));
        };
        self.take(request, placed.node);
        Ok(Ok(placed))
    }

    /// Give back the room of a VM of `request` on `node`; an emptied node stays on.
    pub fn release(&mut self, request: Request, node: NodeId) -> Result<(), EngineError> {
        self.check(request)?;
        let class = &self.classes[request.class as usize];
        let (vcpu_count, memory_mib) = (class.vcpu_count, class.memory_mib);
        let slot = self
            .nodes
            .get_mut(node as usize)
            .ok_or(unknown("node", node))?;
        if slot.vm_count == 0 || slot.vcpu_used < vcpu_count {
            return Err(EngineError::NothingHeld(node));
        }
        slot.vm_count -= 1;
        slot.vcpu_used -= vcpu_count;
        slot.spec.vcpu_free += vcpu_count;
        slot.spec.memory_free_mib += memory_mib;
        self.settle_power(node);
        let member = (request.group, node);
        if let Some(members) = self.groups.get_mut(&member) {
            *members -= 1;
            if *members == 0 {
                self.groups.remove(&member);
            }
        }
        Ok(())
    }

    /// Move a VM of `request` to a node that a plan names; a sleeping one wakes. False, and
    /// nothing has changed, if the node lacks room or its path lacks watts.
    pub fn migrate(
        &mut self,
        request: Request,
        from: NodeId,
        to: NodeId,
    ) -> Result<bool, EngineError> {
        self.check(request)?;
        let node = self.nodes.get(to as usize).ok_or(unknown("node", to))?;
        let class = &self.classes[request.class as usize];
        let container = &self.containers[node.container as usize];
        let branch = &self.branches[node.spec.branch as usize];
        let added_watts = self.added_watts(node, class.vcpu_count);
        let fits = from != to
            && node.spec.in_service
            && node.spec.vcpu_free >= class.vcpu_count
            && node.spec.memory_free_mib >= class.memory_mib
            && added_watts <= container.limit_watts - container.power_watts
            && added_watts <= branch.limit_watts - branch.power_watts
            && (request.group == 0 || !self.groups.contains_key(&(request.group, to)));
        if fits {
            self.release(request, from)?;
            self.take(request, to);
        }
        Ok(fits)
    }

    /// Count who would refuse `request` now, by the first rule that each node breaks.
    ///
    /// Nodes that could take it are counted under `electrical` too, the last rule.
    pub fn refusals(&self, request: Request) -> Result<Refused, EngineError> {
        self.check(request)?;
        Ok(self.count_refusals(request))
    }

    fn check(&self, request: Request) -> Result<(), EngineError> {
        if request.class as usize >= self.classes.len() {
            return Err(unknown("class", request.class));
        }
        if request.contract as usize >= self.contracts.len() {
            return Err(unknown("contract", request.contract));
        }
        Ok(())
    }

    fn search(&mut self, request: Request) -> Option<Placed> {
        let mut best: Option<Placed> = None;
        for index in 0..self.containers.len() {
            let container = &self.containers[index];
            let site = container.site as usize;
            if !self.contracts[request.contract as usize]
                .get(site)
                .copied()
                .unwrap_or(false)
            {
                continue;
            }
            let known = self.classes[request.class as usize].best[index];
            let mut found = if known.version == container.version {
                known
            } else {
                let fresh = self.scan(request, index, 0);
                self.classes[request.class as usize].best[index] = fresh;
                fresh
            };
            if found.node == NodeId::MAX {
                continue;
            }
            let weight = if self.classes[request.class as usize].scores.is_some() {
                1.0
            } else {
                self.weights[site]
            };
            if best.is_some_and(|best| found.score * weight >= best.score) {
                continue; // before looking at groups: a better one could only be worse
            }
            if request.group != 0 && self.groups.contains_key(&(request.group, found.node)) {
                found = self.scan(request, index, request.group);
                if found.node == NodeId::MAX {
                    continue;
                }
            }
            let score = found.score * weight;
            if best.is_none_or(|best| score < best.score) {
                best = Some(Placed {
                    node: found.node,
                    score,
                });
            }
        }
        best
    }

    /// Look at every node of a container, without those that `group` already uses.
    fn scan(&self, request: Request, index: usize, group: u32) -> Best {
        let class = &self.classes[request.class as usize];
        let container = &self.containers[index];
        let headroom_watts = container.limit_watts - container.power_watts;
        let mut best = Best {
            version: container.version,
            ..UNKNOWN
        };
        for number in container.nodes.clone() {
            let node = &self.nodes[number as usize];
            if !node.spec.in_service
                || node.spec.vcpu_free < class.vcpu_count
                || node.spec.memory_free_mib < class.memory_mib
            {
                continue;
            }
            let added_watts = self.added_watts(node, class.vcpu_count);
            let score = class
                .scores
                .as_ref()
                .map_or(added_watts, |own| own[number as usize]);
            // A score that is no number bars the node.
            if score.is_nan() || score >= best.score || added_watts > headroom_watts {
                continue;
            }
            let branch = &self.branches[node.spec.branch as usize];
            if added_watts > branch.limit_watts - branch.power_watts {
                continue;
            }
            if group != 0 && self.groups.contains_key(&(group, number)) {
                continue;
            }
            best.score = score;
            best.node = number;
        }
        best
    }

    fn added_watts(&self, node: &Node, vcpu_count: u32) -> f64 {
        let curve = &self.curves[node.spec.curve as usize];
        let cpu_count = f64::from(node.spec.cpu_count.max(1));
        let after = curve.at(f64::from(node.vcpu_used + vcpu_count) / cpu_count);
        let waking = if node.spec.booted {
            0.0
        } else {
            curve.waking_watts
        };
        after - node.power_watts + waking
    }

    fn take(&mut self, request: Request, number: NodeId) {
        let class = &self.classes[request.class as usize];
        let node = &mut self.nodes[number as usize];
        node.vm_count += 1;
        node.vcpu_used += class.vcpu_count;
        node.spec.vcpu_free -= class.vcpu_count;
        node.spec.memory_free_mib -= class.memory_mib;
        node.spec.booted = true;
        self.settle_power(number);
        if request.group != 0 {
            *self.groups.entry((request.group, number)).or_insert(0) += 1;
        }
    }

    /// Set a node's watts by its load, and carry the difference up its path.
    fn settle_power(&mut self, number: NodeId) {
        let node = &mut self.nodes[number as usize];
        let load = f64::from(node.vcpu_used) / f64::from(node.spec.cpu_count.max(1));
        let watts = self.curves[node.spec.curve as usize].at(load);
        let added = watts - node.power_watts;
        node.power_watts = watts;
        self.branches[node.spec.branch as usize].power_watts += added;
        let container = &mut self.containers[node.container as usize];
        container.power_watts += added;
        container.version += 1;
    }

    fn count_refusals(&self, request: Request) -> Refused {
        let class = &self.classes[request.class as usize];
        let allowed = &self.contracts[request.contract as usize];
        let mut told = Refused::default();
        for container in &self.containers {
            if !allowed
                .get(container.site as usize)
                .copied()
                .unwrap_or(false)
            {
                told.contract += container.nodes.end - container.nodes.start;
                continue;
            }
            for number in container.nodes.clone() {
                let node = &self.nodes[number as usize];
                let slot = if !node.spec.in_service {
                    &mut told.out_of_service
                } else if node.spec.vcpu_free < class.vcpu_count {
                    &mut told.vcpu
                } else if node.spec.memory_free_mib < class.memory_mib {
                    &mut told.memory
                } else if request.group != 0 && self.groups.contains_key(&(request.group, number)) {
                    &mut told.apart
                } else {
                    &mut told.electrical
                };
                *slot += 1;
            }
        }
        told
    }
}

fn unknown(what: &'static str, number: u32) -> EngineError {
    EngineError::Unknown { what, number }
}

/// Counts fit 32 bits: four thousand million nodes are more than there are.
fn count(length: usize) -> u32 {
    u32::try_from(length).expect("fewer than 2^32 of anything")
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
