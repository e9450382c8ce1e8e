//! A node's watts by load: eleven points, straight between them (the form of `SPECpower`).

/// Points of a curve: 0, 10 … 100 % of CPU.
pub const CURVE_POINTS: usize = 11;

/// Watts at each tenth of load, and what waking the node costs on top of idling, in watts
/// spread over the time it is expected to stay awake.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    pub watts: [f64; CURVE_POINTS],
    pub waking_watts: f64,
}

impl Curve {
    /// The watts at `load`; loads beyond either end are taken as that end.
    pub fn at(&self, load: f64) -> f64 {
        let place = load.clamp(0.0, 1.0) * 10.0;
        // The cast floors a value between 0 and 10.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let below = (place as usize).min(CURVE_POINTS - 2);
        let low = self.watts[below];
        #[expect(clippy::cast_precision_loss)]
        let part = place - below as f64;
        low + (self.watts[below + 1] - low) * part
    }
}
