//! Targets of volumes that are led elsewhere: a second path for initiators (ALUA).
//!
//! Such a target shows the volume and refuses its data: hosts keep their sessions here, and once a head
//! opens they go on with them, told by a unit attention. It knows no reservations, those are the head's.

use crate::catalogue::chosen_uuid;
use crate::control::{Code, Refusal, StandBy};
use crate::daemon::{Storaged, access};
use crate::heads::access_states;
use nuage_block::Geometry;
use nuage_io::doors::VolumeId;
use nuage_io::log;
use nuage_io::serve::Context;
use nuage_scsi::{AccessState, Alua};
use serde_json::{Value, json};

/// A target without a head.
#[derive(Debug)]
pub struct Standby {
    pub id: VolumeId,
    pub iqn: String,
    alua: Alua,
}

impl Storaged {
    /// Show a volume on a path that does not serve; asked again, with what is new.
    pub(crate) fn stand_by(
        &mut self,
        wish: &StandBy,
        context: &mut Context<'_>,
    ) -> Result<Value, Refusal> {
        let refused = |code, message: &str| Err(Refusal::new(code, message));
        if self.heads.contains_key(&wish.volume) {
            return refused(Code::Conflict, "the head is open here: set_port_groups");
        }
        let spec = self.catalogue.get(&wish.volume)?;
        let access = access(
            wish.chap.as_deref(),
            wish.chap_own.as_ref(),
            &wish.initiators,
        )?;
        let alua = access_states(wish.own, &wish.groups)?;
        let own = alua.groups.iter().find(|group| group.id == wish.own);
        let serves = |state| matches!(state, AccessState::Optimized | AccessState::NonOptimized);
        if own.is_none_or(|group| serves(group.state)) {
            return refused(Code::InvalidRequest, "own: a group that does not serve");
        }
        let geometry = Geometry {
            size_bytes: spec.size_bytes,
            logical_block_bytes: spec.logical_block_bytes,
            uuid: chosen_uuid(spec.uuid.as_deref())?,
            name: wish.volume.as_str().into(),
            read_only: false,
            write_cache: true,
        };
        if self
            .standbys
            .get(&wish.volume)
            .is_some_and(|known| known.iqn != wish.iqn)
        {
            self.end_standby(&wish.volume, context);
        }
        let id = match self.standbys.get(&wish.volume) {
            Some(known) => known.id,
            None => self.new_id(),
        };
        let iscsi = &mut context.doors.iscsi;
        if let Some(unit) = iscsi.unit_mut(id) {
            unit.set_geometry(geometry);
            iscsi.set_access(id, access);
        } else if !iscsi.add_target(id, &wish.iqn, geometry, access) {
            let message = format!("the target {:?} is in use", wish.iqn);
            return Err(Refusal::new(Code::Conflict, message));
        }
        iscsi.set_alua(id, alua.clone());
        let iqn = wish.iqn.clone();
        self.standbys
            .insert(wish.volume.clone(), Standby { id, iqn, alua });
        log::info("stands_by", &[("volume", wish.volume.as_str().into())]);
        Ok(json!({"volume": wish.volume}))
    }

    /// Withdraw the target of a volume that is not led here.
    pub(crate) fn end_standby(&mut self, volume: &str, context: &mut Context<'_>) {
        if let Some(known) = self.standbys.remove(volume) {
            context.doors.iscsi.remove_target(known.id);
        }
    }

    /// The number under which a head that opens as `iqn` takes over target and sessions.
    pub(crate) fn id_for_head(
        &mut self,
        volume: &str,
        iqn: Option<&str>,
        context: &mut Context<'_>,
    ) -> VolumeId {
        match self.standbys.get(volume) {
            Some(known) if Some(known.iqn.as_str()) == iqn => known.id,
            _ => {
                self.end_standby(volume, context);
                self.new_id()
            }
        }
    }

    /// The head is ready: its path serves, and it alone.
    pub(crate) fn serve_after_standby(&mut self, volume: &str, context: &mut Context<'_>) {
        let Some(Standby { id, mut alua, .. }) = self.standbys.remove(volume) else {
            return;
        };
        for group in &mut alua.groups {
            group.state = match group.state {
                _ if group.id == alua.own_group => AccessState::Optimized,
                AccessState::Optimized | AccessState::NonOptimized => AccessState::Unavailable,
                other => other,
            };
        }
        context.doors.iscsi.set_alua(id, alua);
    }
}
