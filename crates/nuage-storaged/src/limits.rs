//! How much volumes may do: each its own limit, and all of this daemon their share of the disk.

use crate::control::{Limits, Refusal};
use crate::daemon::Storaged;
use nuage_block::BlockDevice;
use nuage_engine::{Bucket, Limited, Rate, SharedBucket, SystemClock};
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
    /// Hold a device to its own limit and to the daemon's share.
    pub(crate) fn limited(
        &self,
        device: Box<dyn BlockDevice>,
        limits: Limits,
    ) -> (Box<dyn BlockDevice>, SharedBucket) {
        let own = Rc::new(RefCell::new(Bucket::new(limits.into())));
        let shared = Rc::clone(&self.share);
        let clock = Rc::new(SystemClock::default());
        let device = Limited::new(device, Rc::clone(&own), shared, clock);
        (Box::new(device), own)
    }

    pub(crate) fn set_limits(&mut self, volume: &str, limits: Limits) -> Result<Value, Refusal> {
        self.head(volume)?
            .limit
            .borrow_mut()
            .set_rate(limits.into());
        Ok(json!({"volume": volume}))
    }

    pub(crate) fn set_share(&mut self, limits: Limits) -> Value {
        self.share.borrow_mut().set_rate(limits.into());
        json!({})
    }
}
