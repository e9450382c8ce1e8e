//! How much volumes may do: each its own limit, and all of this daemon their share of the disk; and how
//! far their copies elsewhere may be behind.

use crate::control::{self, Limits, Refusal};
use crate::daemon::{Head, Storaged};
use nuage_block::BlockDevice;
use nuage_engine::{
    Answering, Bucket, LagBound, Limited, Rate, SharedBucket, SharedBudget, SystemClock,
};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::rc::Rc;

impl From<Limits> for Rate {
    fn from(limits: Limits) -> Self {
        Self {
            operations_per_s: limits.operations_per_s,
            bytes_per_s: limits.bytes_per_s,
        }
    }
}

impl Storaged {
    /// The daemon's share of the disk that a volume lies on.
    pub(crate) fn budget_of(&self, volume: &str) -> &SharedBudget {
        let spec = self.catalogue.volumes.get(volume);
        let disk = spec.map_or("", |spec| spec.disk.as_str());
        self.budgets.get(disk).unwrap_or(&self.budgets[""])
    }

    /// Hold a device to its own limit and to the daemon's share.
    pub(crate) fn limited(
        &self,
        volume: &str,
        device: Box<dyn BlockDevice>,
        limits: Limits,
    ) -> (Box<dyn BlockDevice>, SharedBucket) {
        let own = Rc::new(RefCell::new(Bucket::new(limits.into())));
        let budget = Rc::clone(self.budget_of(volume));
        let clock = Rc::new(SystemClock::default());
        let device = Limited::new(device, Rc::clone(&own), budget, clock);
        (Box::new(device), own)
    }

    pub(crate) fn set_limits(&mut self, volume: &str, limits: Limits) -> Result<Value, Refusal> {
        self.head(volume)?
            .limit
            .borrow_mut()
            .set_rate(limits.into());
        Ok(json!({"volume": volume}))
    }

    /// The copy here keeps so much of its past from now on; what it has beyond goes with the next tidying.
    pub(crate) fn set_retention(
        &mut self,
        volume: &str,
        retention: control::Retention,
    ) -> Result<Value, Refusal> {
        let rule = self.catalogue.set_retention(volume, retention)?;
        if let Some(engine) = self.heads.get(volume).and_then(|head| head.engine.as_ref()) {
            engine.with(|head| head.store_mut().set_retention(rule));
        }
        if let Some(copy) = self.copies.by_volume.get_mut(volume) {
            copy.store.store_mut().set_retention(rule);
        }
        Ok(json!({"volume": volume}))
    }

    /// The answer tells what was taken until now: the agent divides the disk by it.
    pub(crate) fn set_share(&mut self, disk: &str, limits: Limits) -> Result<Value, Refusal> {
        self.catalogue.disks.require(disk)?;
        let budget = &self.budgets[disk];
        budget.borrow_mut().set_share(limits.into());
        Ok(share_status(budget))
    }

    /// What all heads here may take and have taken, by disk.
    pub(crate) fn shares(&self) -> Value {
        self.budgets
            .iter()
            .map(|(disk, budget)| (disk.clone(), share_status(budget)))
            .collect()
    }
}

fn share_status(budget: &SharedBudget) -> Value {
    let budget = budget.borrow();
    let (share, used) = (budget.share(), budget.used());
    json!({
        "operations_per_s": share.operations_per_s, "bytes_per_s": share.bytes_per_s,
        "operations": used.operations, "bytes": used.bytes, "held": used.held,
    })
}

impl Storaged {
    pub(crate) fn set_lag_bound(
        &mut self,
        volume: &str,
        bound: &control::LagBound,
    ) -> Result<Value, Refusal> {
        bind(self.head(volume)?, bound);
        Ok(json!({"volume": volume}))
    }
}

/// Hold a head's copies to a bound.
pub(crate) fn bind(head: &Head, bound: &control::LagBound) {
    let bound_copy = |peer: &&crate::replication::Peer| bound.nodes.contains(&peer.name);
    let bound = LagBound {
        age_ns: bound.seconds.saturating_mul(1_000_000_000),
        strict: bound.strict,
        copies: head
            .peers
            .iter()
            .filter(bound_copy)
            .fold(0, |copies, peer| copies | 1 << peer.copy),
    };
    if let Some(engine) = &head.engine {
        let bound = Some(bound).filter(|bound| bound.age_ns > 0 && bound.copies != 0);
        engine.with(|engine| engine.set_lag_bound(bound));
    }
}

pub(crate) fn answering_name(answering: Answering) -> &'static str {
    match answering {
        Answering::AtOnce => "at_once",
        Answering::Slowed { .. } => "slowed",
        Answering::Held => "held",
    }
}
