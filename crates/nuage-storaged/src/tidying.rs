//! Work for quiet moments: retention, another look for space, views whose time is over, copies that were replaced, memory to give back.

use crate::daemon::Storaged;
use nuage_engine::VolumeHead;
use nuage_io::log;
use nuage_io::serve::Context;
use std::time::{Duration, Instant};

/// How often: history is let go in steps, and space that came back is soon found.
pub const TIDY_EVERY: Duration = Duration::from_secs(1);

impl Storaged {
    pub(crate) fn tidy(&mut self, context: &mut Context<'_>) {
        if self.tidied_at.elapsed() < TIDY_EVERY {
            return;
        }
        let now = Instant::now();
        self.tidied_at = now;
        let over = |until: Option<Instant>| until.is_some_and(|until| until <= now);
        let ended = self.views.iter().filter(|(_, view)| over(view.until));
        let ended: Vec<String> = ended.map(|(name, _)| name.clone()).collect();
        for view in ended {
            log::info("view_ended", &[("view", view.as_str().into())]);
            self.close_at(&view, context);
        }
        for head in self.heads.values().filter(|head| !head.closing) {
            if let Some(engine) = &head.engine {
                engine.with(VolumeHead::tidy);
            }
        }
        crate::memory::give_back();
        self.tidy_scrubs();
        self.tidy_retired(context);
        self.compare_receipts(context);
        let now_ns = crate::catalogue::now_ns();
        for (volume, copy) in &mut self.copies.by_volume {
            let store = copy.store.store_mut();
            store.retry_space();
            if let Err(error) = store.enforce_retention(now_ns) {
                log::error(
                    "copy_failed",
                    &[
                        ("volume", volume.as_str().into()),
                        ("error", error.to_string().into()),
                    ],
                );
            }
        }
    }
}
