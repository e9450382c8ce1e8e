//! Past moments of a volume as read-only targets and exports.

use crate::catalogue::{EngineVolume, journal_refusal, now_ns};
use crate::control::{Code, Refusal};
use crate::daemon::Storaged;
use nuage_block::BlockDevice as _;
use nuage_io::doors::VolumeId;
use nuage_io::serve::Context;
use nuage_journal::Point;
use nuage_scsi::Access;
use serde_json::{Value, json};
use std::time::Instant;

/// Views of a volume at a time. Each keeps an index of its own in memory, and all of them the history.
pub const VIEWS_MAX: usize = 16;

/// A view that is served.
#[derive(Debug)]
pub struct View {
    pub id: VolumeId,
    /// The head it looks at.
    pub volume: String,
    pub sequence: u64,
    pub iqn: Option<String>,
    pub nbd: Option<String>,
    /// Seconds since 1970.
    pub opened_s: u64,
    /// Closed by itself then.
    pub until: Option<Instant>,
}

/// Where a view is offered.
#[derive(Debug, Default)]
pub struct Names {
    pub iqn: Option<String>,
    pub nbd: Option<String>,
    pub access: Access,
}

/// Serve a past moment of a volume. Names in use are refused.
pub fn open(
    id: VolumeId,
    volume: &str,
    engine: &EngineVolume,
    point: Point,
    names: Names,
    context: &mut Context<'_>,
) -> Result<View, Refusal> {
    let device = engine
        .view(point)
        .map_err(|error| journal_refusal(&error))?;
    let sequence = device.seq();
    let geometry = device.geometry();
    let taken = |name: &str| Refusal::new(Code::Conflict, format!("the name {name:?} is in use"));
    if let Some(iqn) = &names.iqn
        && !context
            .doors
            .iscsi
            .add_target(id, iqn, geometry.clone(), names.access)
    {
        return Err(taken(iqn));
    }
    if let Some(name) = &names.nbd {
        let export = nuage_nbd::Export {
            name: name.clone(),
            geometry,
            multi_conn: true,
        };
        if !context.doors.nbd.add_export(id, export) {
            context.doors.iscsi.remove_target(id);
            return Err(taken(name));
        }
    }
    context.doors.add_volume(id, Box::new(device));
    Ok(View {
        id,
        volume: volume.to_owned(),
        sequence,
        iqn: names.iqn,
        nbd: names.nbd,
        opened_s: now_ns() / 1_000_000_000,
        until: None,
    })
}

impl Storaged {
    pub(crate) fn views_of(&self, volume: &str, context: &Context<'_>) -> Vec<Value> {
        let now = Instant::now();
        let of_volume = self.views.iter().filter(|(_, view)| view.volume == volume);
        of_volume
            .map(|(name, view)| {
                let doors = &context.doors;
                let users = doors.iscsi.sessions(view.id).len() + doors.nbd.connections_of(view.id).len();
                let left = view.until.map(|until| until.saturating_duration_since(now));
                json!({
                    "view": name, "sequence": view.sequence, "iqn": view.iqn, "nbd": view.nbd,
                    "opened_s": view.opened_s, "left_s": left.map(|left| left.as_secs()), "sessions": users,
                })
            })
            .collect()
    }

    /// A bound of views, lest a client that forgets its own fills the memory.
    pub(crate) fn room_for_view(&self, volume: &str) -> Result<(), Refusal> {
        let open = self.views.values().filter(|view| view.volume == volume);
        if open.count() < VIEWS_MAX {
            return Ok(());
        }
        let message = format!("{volume:?} has {VIEWS_MAX} views open: close one of them first");
        Err(Refusal::new(Code::Conflict, message))
    }
}
