//! Growing a volume, its marks, its history and its past moments.

use crate::catalogue::{EngineVolume, journal_refusal, size_fits};
use crate::clones;
use crate::control::{At, Code, Moment, Refusal};
use crate::daemon::{Asker, Handled, MarkGroup, Pending, Storaged, access, reply};
use crate::views;
use nuage_engine::Administration;
use nuage_io::serve::Context;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// By which a mark of several journals is known as one: no restart and no other node gives it again.
/// 53 bits: every reader of JSON keeps it whole.
fn mark_id() -> Result<u64, Refusal> {
    let mut bytes = [0; 8];
    if !nuage_io::serve::random(&mut bytes) {
        return Err(Refusal::new(Code::Io, "no random bytes"));
    }
    Ok(u64::from_le_bytes(bytes) >> 11)
}

impl Storaged {
    /// Grow a volume through its head: the size is a record of the journal.
    pub(crate) fn resize(&mut self, volume: String, size_bytes: u64, asker: &Asker) -> Handled {
        let engine = self.engine(&volume)?.clone();
        let known = self.catalogue.get(&volume)?.size_bytes;
        if size_bytes == known {
            return Ok(Some(json!({"size_bytes": size_bytes}))); // a retry after a lost answer
        }
        if size_bytes < known {
            let message = format!("{volume:?} has {known} bytes: volumes grow");
            return Err(Refusal::new(Code::InvalidRequest, message));
        }
        if !size_fits(size_bytes) {
            let message = "size_bytes: a multiple of 4096 up to 64 TiB";
            return Err(Refusal::new(Code::InvalidRequest, message));
        }
        let token = self.remember(Pending::Resize {
            volume,
            size_bytes,
            asker: asker.clone(),
        });
        engine.with(|head| head.administer(token, Administration::Resize { size_bytes }));
        Ok(None)
    }

    pub(crate) fn rollback(
        &mut self,
        volume: &str,
        moment: &Moment,
        force: bool,
        asker: &Asker,
        context: &mut Context<'_>,
    ) -> Handled {
        let engine = self.engine(volume)?.clone();
        let id = self.head(volume)?.id;
        let sessions =
            context.doors.iscsi.sessions(id).len() + context.doors.nbd.connections_of(id).len();
        if sessions > 0 && !force {
            return Err(Refusal::new(
                Code::Conflict,
                format!("{sessions} sessions use the volume; stop them or use force"),
            ));
        }
        let point = engine.with(|head| clones::point(head.store(), moment))?;
        let token = self.remember(Pending::Rollback {
            asker: asker.clone(),
        });
        engine.with(|head| head.administer(token, Administration::Rollback(point)));
        Ok(None)
    }

    /// One mark in each journal, asked for in one turn of the loop: no request comes in between.
    pub(crate) fn mark(&mut self, volumes: &[String], name: &str, asker: &Asker) -> Handled {
        let engines: Vec<EngineVolume> = volumes
            .iter()
            .map(|volume| self.engine(volume).cloned())
            .collect::<Result<_, _>>()?;
        if engines.is_empty() {
            return Err(Refusal::new(Code::InvalidRequest, "no volumes named"));
        }
        let id = mark_id()?;
        let group = self.next_token;
        self.next_token += 1;
        let missing = engines.len();
        self.marks.insert(
            group,
            MarkGroup {
                asker: asker.clone(),
                missing,
                sequences: serde_json::Map::new(),
                failure: None,
            },
        );
        for (volume, engine) in volumes.iter().zip(engines) {
            let token = self.remember(Pending::Mark {
                group,
                volume: volume.clone(),
            });
            engine.with(|head| {
                head.administer(
                    token,
                    Administration::Mark {
                        id,
                        name: name.to_owned(),
                    },
                );
            });
        }
        Ok(None)
    }

    pub(crate) fn marked(
        &mut self,
        group: u64,
        volume: &str,
        outcome: Result<u64, Refusal>,
        context: &mut Context<'_>,
    ) {
        let Some(marks) = self.marks.get_mut(&group) else {
            return;
        };
        match outcome {
            Ok(sequence) => {
                marks.sequences.insert(volume.to_owned(), sequence.into());
            }
            Err(refusal) => marks.failure = Some(refusal),
        }
        marks.missing -= 1;
        if marks.missing > 0 {
            return;
        }
        if let Some(marks) = self.marks.remove(&group) {
            let result = match marks.failure {
                None => Ok(json!({"sequences": marks.sequences})),
                Some(refusal) => Err(refusal),
            };
            reply(context, &marks.asker, result);
        }
    }

    pub(crate) fn history(&self, volume: &str, after: u64, count: usize) -> Result<Value, Refusal> {
        let engine = self.engine(volume)?;
        engine.with(|head| {
            let store = head.store_mut();
            let groups = store
                .history(after, count.min(10_000))
                .map_err(|error| journal_refusal(&error))?;
            let groups: Vec<Value> = groups
                .iter()
                .map(|group| {
                    json!({
                        "first_sequence": group.first_seq, "last_sequence": group.last_seq,
                        "time_us": group.time_ns / 1000, "epoch": group.epoch,
                        "segment": group.segment, "blocks": group.blocks,
                    })
                })
                .collect();
            let marks: Vec<Value> = store
                .marks()
                .iter()
                .map(|mark| {
                    json!({
                        "sequence": mark.seq, "time_us": mark.time_ns / 1000, "id": mark.id,
                        "name": mark.name, "kind": format!("{:?}", mark.kind).to_lowercase(),
                    })
                })
                .collect();
            Ok(json!({
                "horizon_sequence": store.horizon_seq(), "horizon_time_us": store.horizon_time_ns() / 1000,
                "dropped_early_us": store.dropped_early_ns() / 1000, "sequence": store.applied_seq(),
                "history_bytes": store.history_bytes(), "marks": marks, "groups": groups,
            }))
        })
    }

    pub(crate) fn at(&mut self, asked: At, context: &mut Context<'_>) -> Result<Value, Refusal> {
        let engine = self.engine(&asked.volume)?.clone();
        self.room_for_view(&asked.volume)?;
        let point = engine.with(|head| clones::point(head.store(), &asked.moment))?;
        let names = views::Names {
            iqn: asked.iqn,
            nbd: asked.nbd,
            access: access(asked.chap.as_deref(), None, &asked.initiators)?,
        };
        let id = self.new_id();
        let mut view = views::open(id, &asked.volume, &engine, point, names, context)?;
        view.until = asked
            .seconds
            .and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
        let name = format!("{}@{}#{id}", asked.volume, view.sequence);
        let value = json!({
            "view": name, "sequence": view.sequence,
            "iqn": view.iqn, "nbd": view.nbd,
        });
        self.views.insert(name, view);
        Ok(value)
    }

    pub(crate) fn close_at(&mut self, name: &str, context: &mut Context<'_>) -> Value {
        if let Some(view) = self.views.remove(name) {
            context.doors.iscsi.remove_target(view.id);
            context.doors.nbd.remove_export(view.id);
            drop(context.doors.remove_volume(view.id));
        }
        json!({"view": name})
    }

    pub(crate) fn administered(
        &mut self,
        tag: u64,
        outcome: Result<u64, Refusal>,
        context: &mut Context<'_>,
    ) {
        match self.pending.remove(&tag) {
            Some(Pending::Rollback { asker }) => {
                reply(
                    context,
                    &asker,
                    outcome.map(|sequence| json!({"sequence": sequence})),
                );
            }
            Some(Pending::Mark { group, volume }) => self.marked(group, &volume, outcome, context),
            Some(Pending::Resize {
                volume,
                size_bytes,
                asker,
            }) => {
                let result = outcome.and_then(|sequence| {
                    self.catalogue.resized(&volume, size_bytes)?;
                    Ok(json!({"sequence": sequence, "size_bytes": size_bytes}))
                });
                if let Some(id) = self.heads.get(&volume).map(|head| head.id)
                    && let Some(geometry) = context
                        .doors
                        .device(id)
                        .map(nuage_block::BlockDevice::geometry)
                {
                    context.doors.nbd.set_geometry(id, geometry.clone());
                    if let Some(unit) = context.doors.iscsi.unit_mut(id) {
                        unit.set_geometry(geometry);
                    }
                }
                reply(context, &asker, result);
            }
            _ => {}
        }
    }
}
