//! New volumes that begin with another's past, and what a moment is.

use crate::catalogue::{
    Catalogue, begin, check_name, chosen_uuid, hex, io_refusal, journal_refusal, now_ns,
};
use crate::control::{Backend, CloneVolume, Code, CreateVolume, Moment, Refusal};
use crate::daemon::Storaged;
use crate::disks::Disks;
use nuage_disk::FileDisk;
use nuage_engine::clone_store;
use nuage_io::log;
use nuage_io::serve::Context;
use nuage_journal::{Point, Store};
use serde_json::{Value, json};
use std::fs;

/// The point that a moment names in this copy's journal.
pub fn point(store: &Store<FileDisk>, moment: &Moment) -> Result<Point, Refusal> {
    match moment {
        Moment::Sequence(sequence) => Ok(Point::Seq(*sequence)),
        Moment::TimeUs(time_us) => Ok(Point::Time(time_us.saturating_mul(1000))),
        Moment::Mark(name) => {
            let marks = store.marks();
            let found = marks.iter().rev().find(|mark| mark.name == *name);
            found.map(|mark| Point::Seq(mark.seq)).ok_or_else(|| {
                Refusal::new(Code::NotFound, format!("no mark {name:?} in the history"))
            })
        }
    }
}

impl Storaged {
    /// Call `act` with our copy of a volume's journal, whether it is led here or elsewhere.
    fn with_store<R>(
        &mut self,
        volume: &str,
        context: &mut Context<'_>,
        act: impl FnOnce(&mut Store<FileDisk>) -> R,
    ) -> Result<R, Refusal> {
        if self.catalogue.get(volume)?.backend != Backend::Journal {
            let message = "this backend keeps no history";
            return Err(Refusal::new(Code::NotSupported, message));
        }
        if let Some(head) = self.heads.get(volume) {
            let engine = head.engine.as_ref().filter(|_| head.ready && !head.closing);
            let engine = engine.ok_or_else(|| {
                Refusal::new(
                    Code::Unavailable,
                    format!("the head of {volume:?} is on its way"),
                )
            })?;
            return Ok(engine.with(|head| act(head.store_mut())));
        }
        self.open_copy(volume, context)?;
        let copy = self.copies.by_volume.get_mut(volume);
        let copy = copy.ok_or_else(|| Refusal::new(Code::NotFound, "the copy is gone"))?;
        Ok(act(copy.store.store_mut()))
    }

    pub(crate) fn clone_volume(
        &mut self,
        asked: &CloneVolume,
        context: &mut Context<'_>,
    ) -> Result<Value, Refusal> {
        check_name(&asked.clone)?;
        if let Some(known) = self.catalogue.volumes.get(&asked.clone) {
            if asked.uuid.is_some() && known.uuid != asked.uuid {
                let message = format!("another volume {:?} is here", asked.clone);
                return Err(Refusal::new(Code::Conflict, message));
            }
            return Ok(json!({"volume": known.volume, "size_bytes": known.size_bytes}));
        }
        let mut spec = self.catalogue.get(&asked.volume)?.clone();
        if self.catalogue.is_base_lost(&asked.volume) {
            let message = format!("the base segments of {:?} are lost here", asked.volume);
            return Err(Refusal::new(Code::NotFound, message));
        }
        let uuid = chosen_uuid(asked.uuid.as_deref())?;
        spec.volume.clone_from(&asked.clone);
        spec.uuid = Some(hex(&uuid));
        spec.retention = asked.retention.unwrap_or(spec.retention);
        let parent = self.catalogue.folder(&asked.volume);
        let folder = parent.with_file_name(&asked.clone); // on the parent's disk
        let journal = folder.join("journal");
        begin(&folder)?;
        self.forget_copy(&asked.clone, &spec.disk);
        let disks = &self.catalogue.disks;
        fs::create_dir_all(&journal)
            .and_then(|()| disks.give_clones_base(&parent.join("journal"), &journal, &asked.clone))
            .map_err(|error| io_refusal(&asked.clone, &error))?;
        let joins = asked.joins.then_some(asked.epoch);
        let made = self.with_store(&asked.volume, context, |store| {
            if !store.is_whole() {
                let message = format!("the copy of {:?} here is being made anew", asked.volume);
                return Err(Refusal::new(Code::NotFound, message));
            }
            let seq = reached(store, &asked.moment)?;
            clone_store(store, seq, &journal, uuid, now_ns(), joins)
                .and_then(|()| Ok((seq, store.view(seq)?.size_bytes)))
                .map_err(|error| journal_refusal(&error))
        });
        let made = made.and_then(|made| made).and_then(|(seq, size_bytes)| {
            spec.size_bytes = size_bytes;
            self.catalogue.enter(&folder, spec.clone())?;
            Ok(seq)
        });
        let sequence = made.inspect_err(|_| {
            // Half a volume must not stay; the next start would remove it too.
            let _ = Disks::remove(&folder);
        })?;
        log::info(
            "volume_cloned",
            &[
                ("volume", asked.clone.as_str().into()),
                ("parent", asked.volume.as_str().into()),
                ("sequence", sequence.into()),
            ],
        );
        Ok(json!({
            "volume": spec.volume, "uuid": spec.uuid, "size_bytes": spec.size_bytes,
            "sequence": sequence,
        }))
    }

    pub(crate) fn resolve(
        &mut self,
        volume: &str,
        moment: &Moment,
        context: &mut Context<'_>,
    ) -> Result<Value, Refusal> {
        self.with_store(volume, context, |store| {
            let seq = reached(store, moment)?;
            let state = store.view(seq).map_err(|error| journal_refusal(&error))?;
            Ok(json!({"sequence": seq, "size_bytes": state.size_bytes}))
        })?
    }

    /// Check the chain of our copy, some of it at a time; no key is needed.
    pub(crate) fn verify_chain(
        &mut self,
        volume: &str,
        after: u64,
        context: &mut Context<'_>,
    ) -> Result<Value, Refusal> {
        /// Read at once: others wait meanwhile.
        const VERIFY_BYTES: u64 = 4 << 20;
        let proof = self.with_store(volume, context, |store| {
            store.verify_chain(after, VERIFY_BYTES)
        })?;
        let proof = proof.map_err(|error| journal_refusal(&error))?;
        Ok(json!({
            "first_sequence": proof.first_seq, "last_sequence": proof.last_seq,
            "chain": hex(&proof.chain), "groups": proof.group_count,
            "complete": proof.is_complete,
        }))
    }
}

/// The sequence number of a moment that this copy has reached; a copy that follows a head may be late.
fn reached(store: &mut Store<FileDisk>, moment: &Moment) -> Result<u64, Refusal> {
    let late = |message: String| Refusal::new(Code::Unavailable, message);
    let applied = store.applied_seq();
    match point(store, moment) {
        Ok(Point::Seq(seq)) if seq > applied => {
            Err(late(format!("this copy is at {applied}, not yet at {seq}")))
        }
        Ok(point) => store
            .resolve(point)
            .map_err(|error| journal_refusal(&error)),
        Err(refusal) => Err(refusal),
    }
}

impl Catalogue {
    /// Enter a volume whose files are in `folder`: durable when it returns.
    fn enter(&mut self, folder: &std::path::Path, spec: CreateVolume) -> Result<(), Refusal> {
        self.finish(folder, &spec)
            .map_err(|error| io_refusal(&spec.volume, &error))?;
        self.volumes.insert(spec.volume.clone(), spec);
        Ok(())
    }
}
