//! Whether to look for work a moment longer before going to sleep.
//!
//! Going to sleep and being woken costs more than many a wait itself, in a virtual machine most of all. So after sleeps that
//! were short the loop looks again for up to [`LOOK`] first. Whether that pays is judged by what came of it:
//!
//! ```text
//!  asleep ── SHORT_SLEEPS in a row ──► one look more ── nothing found ──► asleep
//!                                        │ found
//!                                        ▼
//!  looking at each wait, while FOUND_MIN of the last 32 looks found something
//! ```
//!
//! An idle daemon has no short sleeps and never looks. Who has to wait for its processor does not look either: it
//! would take from others, the client that it waits for among them.

use std::time::Duration;

/// Longest look: what a client takes for its next request at depth 1.
pub const LOOK: Duration = Duration::from_micros(25);
/// A sleep of as much would have been within a look: waking is in it.
const SHORT_SLEEP: Duration = Duration::from_micros(50);
/// Short sleeps before a look is tried: a look in vain costs each of them less than half a microsecond.
const SHORT_SLEEPS: u32 = 64;
/// Of the last 32 looks as many found something, or there are no more: one in vain costs three sleeps or so.
const FOUND_MIN: u32 = 24;
/// Waits after which the processor is asked about.
const WAITS_BETWEEN: u32 = 256;
/// Of this share of the time and more the loop was ready to run and another had the processor.
const CROWDED: f64 = 0.05;

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Something was ready at once.
    Ready,
    /// Something came while the loop looked.
    Found,
    /// It came after so long; a look in vain is part of that.
    Slept(Duration),
}

/// What came of the looks of one kind of waits.
#[derive(Debug, Default, Clone, Copy)]
struct Looks {
    /// The newest in bit 0; set where something was found.
    found: u32,
    short_sleeps: u32,
}

impl Looks {
    fn is_worth_it(self) -> bool {
        self.found.count_ones() >= FOUND_MIN || self.short_sleeps >= SHORT_SLEEPS
    }

    fn waited(&mut self, wait: Wait, looked: bool) {
        match wait {
            Wait::Ready => {}
            Wait::Found => self.found = self.found << 1 | 1,
            Wait::Slept(slept) => {
                if looked {
                    self.found <<= 1;
                }
                self.short_sleeps = if looked || slept > SHORT_SLEEP {
                    0
                } else {
                    self.short_sleeps + 1
                };
            }
        }
    }
}

/// Says before each wait whether to look, and learns from each.
#[derive(Debug, Default)]
pub struct Patience {
    /// Of waits for clients, and of those for a disk or another daemon that owes an answer: these differ.
    looks: [Looks; 2],
    waits: u32,
    /// Time and what the loop had waited for its processor then.
    asked_at: Duration,
    queued: Duration,
    is_crowded: bool,
}

impl Patience {
    /// How long to look before the next sleep; zero: not at all. `owed`: somebody waits for an answer of ours.
    pub fn look(&self, owed: bool) -> Duration {
        let looks = !self.is_crowded && self.looks[usize::from(owed)].is_worth_it();
        if looks { LOOK } else { Duration::ZERO }
    }

    /// A wait before which [`Patience::look`] was asked is over.
    pub fn waited(&mut self, owed: bool, wait: Wait) {
        let looked = !self.look(owed).is_zero();
        self.looks[usize::from(owed)].waited(wait, looked);
        self.waits += 1;
    }

    /// True when [`Patience::heard`] should be told about the processor.
    pub fn is_due(&self) -> bool {
        self.waits >= WAITS_BETWEEN
    }

    /// Up to `now` the loop has been ready to run for `queued` while another had its processor; nobody knows: it
    /// passes for one that has to wait.
    pub fn heard(&mut self, now: Duration, queued: Option<Duration>) {
        let passed = now.saturating_sub(self.asked_at);
        self.is_crowded = queued
            .is_none_or(|queued| queued.saturating_sub(self.queued) >= passed.mul_f64(CROWDED));
        self.asked_at = now;
        self.queued = queued.unwrap_or_default();
        self.waits = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Wait = Wait::Slept(Duration::from_micros(20));
    const LONG: Wait = Wait::Slept(Duration::from_millis(1));

    fn wait(patience: &mut Patience, times: u32, wait: Wait) {
        for _ in 0..times {
            patience.waited(false, wait);
        }
    }

    fn looks(patience: &Patience) -> bool {
        patience.look(false) == LOOK
    }

    /// One that looks at each wait.
    fn looking() -> Patience {
        let mut patience = Patience::default();
        wait(&mut patience, SHORT_SLEEPS, SHORT);
        wait(&mut patience, 32, Wait::Found);
        patience
    }

    #[test]
    fn nobody_looks_who_is_idle_or_never_sleeps() {
        let mut patience = Patience::default();
        assert!(!looks(&patience));
        wait(&mut patience, 10_000, LONG);
        wait(&mut patience, 10_000, Wait::Ready);
        assert!(!looks(&patience));
        wait(&mut patience, SHORT_SLEEPS - 1, SHORT);
        wait(&mut patience, 1, LONG);
        wait(&mut patience, SHORT_SLEEPS - 1, SHORT);
        assert!(!looks(&patience));
    }

    #[test]
    fn short_sleeps_earn_one_look_and_what_is_found_the_next() {
        let mut patience = Patience::default();
        wait(&mut patience, SHORT_SLEEPS, SHORT);
        assert!(looks(&patience));
        wait(&mut patience, 1, SHORT);
        assert!(!looks(&patience), "it was in vain");
        wait(&mut patience, SHORT_SLEEPS, SHORT);
        wait(&mut patience, 100, Wait::Found);
        assert!(looks(&patience));
    }

    #[test]
    fn a_few_looks_in_vain_are_borne_and_no_more() {
        let mut patience = looking();
        for _ in 0..100 {
            wait(&mut patience, 1, LONG);
            assert!(looks(&patience));
            wait(&mut patience, 4, Wait::Found);
        }
        let vain = (0..).take_while(|_| {
            patience.waited(false, LONG);
            looks(&patience)
        });
        assert!(vain.count() <= 8, "an idle daemon stops soon");
    }

    #[test]
    fn waits_for_a_disk_are_judged_apart() {
        let mut patience = looking();
        for _ in 0..100 {
            patience.waited(true, LONG);
        }
        assert!(looks(&patience));
        assert_eq!(patience.look(true), Duration::ZERO);
    }

    #[test]
    fn who_waits_for_the_processor_does_not_look() {
        let mut patience = looking();
        let ms = Duration::from_millis;
        wait(&mut patience, WAITS_BETWEEN, Wait::Ready);
        assert!(patience.is_due());
        patience.heard(ms(1000), Some(ms(40)));
        assert!(looks(&patience) && !patience.is_due());
        patience.heard(ms(2000), Some(ms(90)));
        assert!(!looks(&patience));
        patience.heard(ms(3000), Some(ms(100)));
        assert!(looks(&patience));
        patience.heard(ms(4000), None);
        assert!(!looks(&patience), "the kernel does not tell");
    }
}
