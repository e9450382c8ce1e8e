//! Past moments of a volume as read-only targets and exports.

use crate::catalogue::{EngineVolume, journal_refusal};
use crate::control::Refusal;
use nuage_block::BlockDevice as _;
use nuage_io::doors::VolumeId;
use nuage_io::serve::Context;
use nuage_journal::Point;
use nuage_scsi::Access;
use std::time::Instant;

/// A view that is served.
#[derive(Debug)]
pub struct View {
    pub id: VolumeId,
    /// The head it looks at.
    pub volume: String,
    pub sequence: u64,
    pub iqn: Option<String>,
    pub nbd: Option<String>,
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
    let taken = |name: &str| {
        Refusal::new(
            crate::control::Code::Conflict,
            format!("the name {name:?} is in use"),
        )
    };
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
        until: None,
    })
}
