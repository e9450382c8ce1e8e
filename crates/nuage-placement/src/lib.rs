//! The hot loop of placement: which node takes a VM for the fewest marginal watts, under hard
//! constraints, a hundred thousand times a second.
//!
//! Nodes stand in containers (168 servers, paper §IV-B), and each container answers like a
//! Local Agent: it remembers its best node for each class of VM, until something in it changes.
//! A placement then reads one remembered score per container and looks again only at nodes of
//! the container that the last placement changed.
//!
//! Knows no socket, file, clock or Python. Scores are marginal watts × the site's weight (PUE,
//! price or carbon of now); a policy written elsewhere may give its own column of scores
//! per class instead ([`Engine::set_scores`]).

mod curve;
mod engine;

pub use curve::{CURVE_POINTS, Curve};
pub use engine::{
    ClassId, ContainerId, ContractId, Engine, EngineError, NodeId, NodeSpec, Placed, Refused,
    Request,
};
