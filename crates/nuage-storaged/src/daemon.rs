//! What the daemon does with control requests, answers of volumes and events of the engine.

use crate::catalogue::{Catalogue, EngineVolume, journal_refusal};
use crate::control::{
    self, Ack, Code, CreateVolume, Credential, Moment, OpenHead, Refusal, Request, SetChap,
};
use crate::fill::{Chunk, Fill};
use crate::metrics::{self, VolumeFigures};
use crate::options::Options;
use crate::receipts::Receipts;
use crate::views::{self, View};
use nuage_block::{Failure, Operation, Outcome};
use nuage_engine::{AckMode, Administration, HeadEvent};
use nuage_io::doors::{Answer, VolumeId};
use nuage_io::log;
use nuage_io::serve::{ClientId, Context, Daemon};
use nuage_journal::StoreEvent;
use nuage_scsi::{Access, AccessState, Alua, PortGroup, chap::Account};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How often closing heads are looked at; nothing else wakes the daemon for them.
const CLOSING_POLL: Duration = Duration::from_millis(20);

/// Who asked, and with which id.
type Asker = (ClientId, Value);

/// A served volume.
struct Head {
    id: VolumeId,
    engine: Option<EngineVolume>,
    epoch: u64,
    policy: String,
    iqn: Option<String>,
    nbd: Option<String>,
    ready: bool,
    closing: bool,
    close_askers: Vec<Asker>,
    fenced: bool,
}

/// Something asked of a volume or its engine, by token.
enum Pending {
    Open {
        volume: String,
        open: Box<OpenHead>,
        asker: Asker,
    },
    Flush {
        asker: Asker,
    },
    CloseFlush {
        volume: String,
    },
    Resize {
        volume: String,
        size_bytes: u64,
        asker: Asker,
    },
    Rollback {
        asker: Asker,
    },
    Mark {
        group: u64,
        volume: String,
    },
    Fill {
        job: u64,
        bytes: u64,
    },
    FillFlush {
        job: u64,
    },
}

/// Marks asked for together.
struct MarkGroup {
    asker: Asker,
    missing: usize,
    sequences: serde_json::Map<String, Value>,
    failure: Option<Refusal>,
}

pub struct Storaged {
    catalogue: Catalogue,
    heads: BTreeMap<String, Head>,
    views: BTreeMap<String, View>,
    pending: HashMap<u64, Pending>,
    marks: HashMap<u64, MarkGroup>,
    fills: BTreeMap<u64, Fill>,
    receipts: Receipts,
    next_token: u64,
    next_id: VolumeId,
    wake: Arc<OwnedFd>,
    draining: bool,
    drain_askers: Vec<Asker>,
}

/// An answer now, or later through `Pending`.
type Handled = Result<Option<Value>, Refusal>;

fn accounts(credentials: &[Credential]) -> Vec<Account> {
    credentials.iter().map(account).collect()
}

fn account(credential: &Credential) -> Account {
    Account {
        name: credential.name.clone(),
        secret: credential.secret.clone().into_bytes(),
    }
}

/// CHAP secrets below 12 bytes can be guessed from one exchange (RFC 7143 §9.2.1).
fn access(
    chap: &[Credential],
    own: Option<&Credential>,
    initiators: &[String],
) -> Result<Access, Refusal> {
    if chap
        .iter()
        .chain(own)
        .any(|credential| credential.secret.len() < 12)
    {
        return Err(Refusal::new(
            Code::InvalidRequest,
            "CHAP secrets have at least 12 bytes",
        ));
    }
    let reused = own.is_some_and(|own| {
        chap.iter()
            .any(|credential| credential.secret == own.secret)
    });
    if reused {
        return Err(Refusal::new(
            Code::InvalidRequest,
            "the target's secret must differ from the initiators'",
        ));
    }
    Ok(Access {
        accounts: accounts(chap),
        own: own.map(account),
        initiators: initiators.to_vec(),
    })
}

fn failure_refusal(failure: Failure) -> Refusal {
    let code = match failure {
        Failure::OutOfRange | Failure::ReadOnly => Code::InvalidRequest,
        Failure::Medium | Failure::Checksum => Code::Io,
        Failure::NoSpace => Code::NoSpace,
        Failure::Fenced => Code::StaleEpoch,
        Failure::Unavailable => Code::Unavailable,
    };
    Refusal::new(code, failure.to_string())
}

fn reply(context: &mut Context<'_>, asker: &Asker, result: Result<Value, Refusal>) {
    context
        .replies
        .push((asker.0, control::answer(&asker.1, result)));
}

impl Storaged {
    pub fn open(options: &Options) -> io::Result<Self> {
        Ok(Self {
            catalogue: Catalogue::open(&options.dir)?,
            heads: BTreeMap::new(),
            views: BTreeMap::new(),
            pending: HashMap::new(),
            marks: HashMap::new(),
            fills: BTreeMap::new(),
            receipts: Receipts::open(&options.dir)?,
            next_token: 1,
            next_id: 1,
            wake: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
            draining: false,
            drain_askers: Vec::new(),
        })
    }

    fn remember(&mut self, pending: Pending) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.pending.insert(token, pending);
        token
    }

    fn new_id(&mut self) -> VolumeId {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    fn head(&self, volume: &str) -> Result<&Head, Refusal> {
        self.heads
            .get(volume)
            .filter(|head| head.ready && !head.closing)
            .ok_or_else(|| Refusal::new(Code::NotFound, format!("no open head of {volume:?} here")))
    }

    fn engine(&self, volume: &str) -> Result<&EngineVolume, Refusal> {
        let plain = || Refusal::new(Code::NotSupported, "this backend keeps no history");
        self.head(volume)?.engine.as_ref().ok_or_else(plain)
    }

    fn handle(&mut self, request: Request, asker: &Asker, context: &mut Context<'_>) -> Handled {
        let changes = matches!(
            request,
            Request::CreateVolume(_)
                | Request::CreateReplica(_)
                | Request::OpenHead(_)
                | Request::At { .. }
        );
        if self.draining && changes {
            return Err(Refusal::new(Code::Draining, "the daemon is going down"));
        }
        match request {
            Request::CreateVolume(spec) | Request::CreateReplica(spec) => {
                self.create(spec).map(Some)
            }
            Request::DeleteVolume { volume } => self.delete(&volume).map(Some),
            Request::OpenHead(open) => self.open_head(open, asker, context),
            Request::CloseHead { volume } => self.close_head(&volume, asker, context),
            Request::SetChap(set) => self.set_chap(&set, context).map(Some),
            Request::SetPortGroups {
                volume,
                own,
                groups,
            } => self.set_groups(&volume, own, &groups, context).map(Some),
            Request::Resize { volume, size_bytes } => self.resize(volume, size_bytes, asker),
            Request::List => Ok(Some(self.list(context))),
            Request::Status { volume } => self.status(&volume, context).map(Some),
            Request::Flush { volume } => {
                let id = self.head(&volume)?.id;
                let token = self.remember(Pending::Flush {
                    asker: asker.clone(),
                });
                context.doors.ask(id, token, Operation::Flush);
                Ok(None)
            }
            Request::FillFromImage { volume, path } => self.fill(&volume, &path, asker),
            Request::History {
                volume,
                after,
                count,
            } => self.history(&volume, after, count).map(Some),
            Request::At {
                volume,
                moment,
                iqn,
                nbd,
            } => self.at(&volume, moment, iqn, nbd, context).map(Some),
            Request::CloseAt { view } => self.close_at(&view, context).map(Some),
            Request::Clone {
                volume,
                moment: _,
                clone: _,
            } => {
                self.engine(&volume)?;
                Err(Refusal::new(
                    Code::NotSupported,
                    "clones are not built in this version",
                ))
            }
            Request::Rollback {
                volume,
                moment,
                force,
            } => self.rollback(&volume, moment, force, asker, context),
            Request::Mark { volumes, name } => self.mark(&volumes, &name, asker),
            Request::Receipts { after } => self.follow(after, asker, context).map(Some),
            Request::Metrics => Ok(Some(json!({"text": metrics::text(&self.figures(context))}))),
            Request::Shutdown => {
                self.drain_askers.push(asker.clone());
                self.drain(context);
                Ok(None)
            }
        }
    }

    fn create(&mut self, spec: CreateVolume) -> Result<Value, Refusal> {
        let spec = self.catalogue.create(spec)?;
        log::info("volume_created", &[("volume", spec.volume.as_str().into())]);
        Ok(json!({"volume": spec.volume, "uuid": spec.uuid, "size_bytes": spec.size_bytes}))
    }

    fn delete(&mut self, volume: &str) -> Result<Value, Refusal> {
        if self.heads.contains_key(volume) {
            return Err(Refusal::new(
                Code::Conflict,
                format!("{volume:?} is open: close_head first"),
            ));
        }
        self.catalogue.delete(volume)?;
        log::info("volume_deleted", &[("volume", volume.into())]);
        Ok(json!({"volume": volume}))
    }

    fn open_head(&mut self, open: OpenHead, asker: &Asker, context: &mut Context<'_>) -> Handled {
        self.catalogue.get(&open.volume)?;
        if let Some(head) = self.heads.get(&open.volume) {
            if head.epoch > open.epoch {
                let message = format!("epoch {} is open, {} is older", head.epoch, open.epoch);
                return Err(Refusal::new(Code::StaleEpoch, message));
            }
            if head.ready
                && !head.closing
                && head.epoch == open.epoch
                && head.iqn == open.iqn
                && head.nbd == open.nbd
            {
                return self.status(&open.volume, context).map(Some);
            }
            return Err(Refusal::new(
                Code::Conflict,
                "the head is open with other words: close_head first",
            ));
        }
        if !open.replicas.is_empty() || open.policy != "local" {
            return Err(Refusal::new(
                Code::NotSupported,
                "only the policy local without replicas is built in this version",
            ));
        }
        // Refuse bad secrets before anything is opened.
        access(&open.chap, open.chap_own.as_ref(), &open.initiators)?;
        let mode = match open.ack {
            Ack::Durable => AckMode::Durable,
            Ack::Memory => AckMode::Memory,
            Ack::WriteBack => AckMode::WriteBack,
        };
        let opened = self
            .catalogue
            .open_head(&open.volume, open.epoch, mode, open.read_only)?;
        let id = self.new_id();
        context.doors.add_volume(id, opened.device);
        self.heads.insert(
            open.volume.clone(),
            Head {
                id,
                engine: opened.engine,
                epoch: open.epoch,
                policy: open.policy.clone(),
                iqn: open.iqn.clone(),
                nbd: open.nbd.clone(),
                ready: false,
                closing: false,
                close_askers: Vec::new(),
                fenced: false,
            },
        );
        let volume = open.volume.clone();
        let token = self.remember(Pending::Open {
            volume,
            open: Box::new(open),
            asker: asker.clone(),
        });
        context.doors.ask(id, token, Operation::LoadReservations);
        Ok(None)
    }

    /// The reservations are here: show the volume at its doors.
    fn opened(
        &mut self,
        volume: &str,
        open: &OpenHead,
        outcome: Outcome,
        context: &mut Context<'_>,
    ) -> Result<Value, Refusal> {
        let Some(head) = self.heads.get_mut(volume) else {
            return Err(Refusal::new(
                Code::Conflict,
                "the head was closed meanwhile",
            ));
        };
        let id = head.id;
        let state = match outcome {
            Outcome::Reservations(state) => state,
            Outcome::Failed(failure) => return Err(failure_refusal(failure)),
            _ => return Err(Refusal::new(Code::Io, "the volume gave no reservations")),
        };
        let geometry = context
            .doors
            .device(id)
            .map(nuage_block::BlockDevice::geometry);
        let geometry = geometry.ok_or_else(|| Refusal::new(Code::Io, "the volume is gone"))?;
        if let Some(iqn) = &open.iqn {
            let access = access(&open.chap, open.chap_own.as_ref(), &open.initiators)?;
            if !context
                .doors
                .iscsi
                .add_target(id, iqn, geometry.clone(), access)
            {
                return Err(Refusal::new(
                    Code::Conflict,
                    format!("the target {iqn:?} is in use"),
                ));
            }
            // A head that opens follows a stop or a crash: SPC-4's power loss.
            let whole = context
                .doors
                .iscsi
                .unit_mut(id)
                .is_some_and(|unit| unit.load_reservations(&state, true));
            if !whole {
                log::error("reservations_damaged", &[("volume", volume.into())]);
            }
        }
        if let Some(name) = &open.nbd {
            // One head orders everything: a flush covers what any connection completed.
            let export = nuage_nbd::Export {
                name: name.clone(),
                geometry,
                multi_conn: true,
            };
            if !context.doors.nbd.add_export(id, export) {
                return Err(Refusal::new(
                    Code::Conflict,
                    format!("the export {name:?} is in use"),
                ));
            }
        }
        head.ready = true;
        log::info(
            "head_opened",
            &[("volume", volume.into()), ("epoch", head.epoch.into())],
        );
        self.status(volume, context)
    }

    fn close_head(&mut self, volume: &str, asker: &Asker, context: &mut Context<'_>) -> Handled {
        if !self.heads.contains_key(volume) {
            return Ok(Some(json!({"volume": volume}))); // a retry after a lost answer
        }
        if let Some(head) = self.heads.get_mut(volume) {
            head.close_askers.push(asker.clone());
        }
        self.begin_close(volume, context);
        Ok(None)
    }

    fn begin_close(&mut self, volume: &str, context: &mut Context<'_>) {
        let views: Vec<String> = self
            .views
            .iter()
            .filter(|(_, view)| view.volume == volume)
            .map(|(name, _)| name.clone())
            .collect();
        for view in views {
            // Only names that exist are closed here.
            let _ = self.close_at(&view, context);
        }
        let Some(head) = self.heads.get_mut(volume) else {
            return;
        };
        if head.closing {
            return;
        }
        head.closing = true;
        let id = head.id;
        context.doors.iscsi.remove_target(id);
        context.doors.nbd.remove_export(id);
        let token = self.remember(Pending::CloseFlush {
            volume: volume.to_owned(),
        });
        context.doors.ask(id, token, Operation::Flush);
    }

    /// The last flush is done and nothing is in flight: let go of the volume.
    fn finish_close(
        &mut self,
        volume: &str,
        flushed: Result<(), Refusal>,
        context: &mut Context<'_>,
    ) {
        let Some(head) = self.heads.remove(volume) else {
            return;
        };
        drop(context.doors.remove_volume(head.id));
        let mut result = flushed;
        if let Some(engine) = head.engine {
            match engine.into_head().map(nuage_engine::VolumeHead::close) {
                Some(Err(error)) if result.is_ok() => result = Err(journal_refusal(&error)),
                _ => {}
            }
        }
        log::info(
            "head_closed",
            &[("volume", volume.into()), ("clean", result.is_ok().into())],
        );
        let answer = result.map(|()| json!({"volume": volume}));
        for asker in &head.close_askers {
            reply(context, asker, answer.clone());
        }
    }

    fn set_chap(&mut self, set: &SetChap, context: &mut Context<'_>) -> Result<Value, Refusal> {
        let id = self.head(&set.volume)?.id;
        let access = access(&set.chap, set.chap_own.as_ref(), &set.initiators)?;
        if !context.doors.iscsi.set_access(id, access) {
            return Err(Refusal::new(
                Code::Conflict,
                "this head has no iSCSI target",
            ));
        }
        Ok(json!({"volume": set.volume}))
    }

    fn set_groups(
        &self,
        volume: &str,
        own: u16,
        groups: &[control::PortGroup],
        context: &mut Context<'_>,
    ) -> Result<Value, Refusal> {
        let id = self.head(volume)?.id;
        let mut parsed = Vec::new();
        for group in groups {
            let state = match group.state.as_str() {
                "optimized" => AccessState::Optimized,
                "non_optimized" => AccessState::NonOptimized,
                "standby" => AccessState::Standby,
                "unavailable" => AccessState::Unavailable,
                "transitioning" => AccessState::Transitioning,
                other => {
                    return Err(Refusal::new(
                        Code::InvalidRequest,
                        format!("{other:?} is no access state"),
                    ));
                }
            };
            parsed.push(PortGroup {
                id: group.id,
                state,
                ports: vec![group.id],
            });
        }
        context.doors.iscsi.set_alua(
            id,
            Alua {
                own_group: own,
                groups: parsed,
            },
        );
        Ok(json!({"volume": volume}))
    }

    fn resize(&mut self, volume: String, size_bytes: u64, asker: &Asker) -> Handled {
        let engine = self.engine(&volume)?.clone();
        let token = self.remember(Pending::Resize {
            volume,
            size_bytes,
            asker: asker.clone(),
        });
        engine.with(|head| head.administer(token, Administration::Resize { size_bytes }));
        Ok(None)
    }

    fn rollback(
        &mut self,
        volume: &str,
        moment: Moment,
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
        let token = self.remember(Pending::Rollback {
            asker: asker.clone(),
        });
        engine.with(|head| head.administer(token, Administration::Rollback(views::point(moment))));
        Ok(None)
    }

    /// One mark in each journal, asked for in one turn of the loop: no request comes in between.
    fn mark(&mut self, volumes: &[String], name: &str, asker: &Asker) -> Handled {
        let engines: Vec<EngineVolume> = volumes
            .iter()
            .map(|volume| self.engine(volume).cloned())
            .collect::<Result<_, _>>()?;
        if engines.is_empty() {
            return Err(Refusal::new(Code::InvalidRequest, "no volumes named"));
        }
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
                        id: group,
                        name: name.to_owned(),
                    },
                )
            });
        }
        Ok(None)
    }

    fn marked(
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

    fn fill(&mut self, volume: &str, path: &str, asker: &Asker) -> Handled {
        self.head(volume)?;
        if self.fills.values().any(|fill| fill.volume == volume) {
            return Err(Refusal::new(
                Code::Conflict,
                "the volume is being filled already",
            ));
        }
        let limit = self.catalogue.get(volume)?.size_bytes;
        let fill = Fill::start(
            asker.0,
            asker.1.clone(),
            volume,
            Path::new(path),
            limit,
            Arc::clone(&self.wake),
        )
        .map_err(|error| Refusal::new(Code::InvalidRequest, format!("{path}: {error}")))?;
        let job = self.next_token;
        self.next_token += 1;
        self.fills.insert(job, fill);
        Ok(None)
    }

    fn history(&self, volume: &str, after: u64, count: usize) -> Result<Value, Refusal> {
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
                "horizon_sequence": store.horizon_seq(), "sequence": store.applied_seq(),
                "history_bytes": store.history_bytes(), "marks": marks, "groups": groups,
            }))
        })
    }

    fn at(
        &mut self,
        volume: &str,
        moment: Moment,
        iqn: Option<String>,
        nbd: Option<String>,
        context: &mut Context<'_>,
    ) -> Result<Value, Refusal> {
        let engine = self.engine(volume)?.clone();
        let id = self.new_id();
        let names = views::Names {
            iqn,
            nbd,
            access: Access::default(),
        };
        let view = views::open(id, volume, &engine, moment, names, context)?;
        let name = format!("{volume}@{}#{id}", view.sequence);
        let value = json!({
            "view": name, "sequence": view.sequence,
            "iqn": view.iqn, "nbd": view.nbd,
        });
        self.views.insert(name, view);
        Ok(value)
    }

    fn close_at(&mut self, name: &str, context: &mut Context<'_>) -> Result<Value, Refusal> {
        if let Some(view) = self.views.remove(name) {
            context.doors.iscsi.remove_target(view.id);
            context.doors.nbd.remove_export(view.id);
            drop(context.doors.remove_volume(view.id));
        }
        Ok(json!({"view": name}))
    }

    fn follow(
        &mut self,
        after: u64,
        asker: &Asker,
        context: &mut Context<'_>,
    ) -> Result<Value, Refusal> {
        let old = self
            .receipts
            .after(after)
            .map_err(|error| Refusal::new(Code::Io, error.to_string()))?;
        for receipt in &old {
            context.replies.push((
                asker.0,
                json!({"event": "receipt", "receipt": receipt})
                    .to_string()
                    .into_bytes(),
            ));
        }
        if !self.receipts.followers.contains(&asker.0) {
            self.receipts.followers.push(asker.0);
        }
        Ok(json!({"count": old.len()}))
    }

    fn list(&self, context: &Context<'_>) -> Value {
        let names: Vec<Value> = self
            .catalogue
            .volumes
            .keys()
            .filter_map(|name| self.status(name, context).ok())
            .collect();
        json!({"volumes": names})
    }

    fn status(&self, volume: &str, context: &Context<'_>) -> Result<Value, Refusal> {
        let spec = self.catalogue.get(volume)?;
        let mut value = json!({
            "volume": spec.volume, "uuid": spec.uuid, "size_bytes": spec.size_bytes,
            "logical_block_bytes": spec.logical_block_bytes, "backend": spec.backend, "head": Value::Null,
        });
        let Some(head) = self.heads.get(volume) else {
            return Ok(value);
        };
        let sessions: Vec<Value> = context
            .doors
            .iscsi
            .sessions(head.id)
            .into_iter()
            .map(|session| {
                json!({
                    "initiator": session.initiator, "isid": crate::catalogue::hex(&session.isid),
                    "portal": session.portal, "tasks": session.task_count,
                })
            })
            .collect();
        let state = match (head.ready, head.closing, head.fenced) {
            (_, _, true) => "fenced",
            (_, true, _) => "closing",
            (true, false, false) => "open",
            (false, false, false) => "opening",
        };
        let figures = self.figures_of(volume, head, context);
        value["head"] = json!({
            "state": state, "epoch": head.epoch, "policy": head.policy, "iqn": head.iqn, "nbd": head.nbd,
            "sessions": sessions, "nbd_connections": context.doors.nbd.connections_of(head.id).len(),
            "sequence": figures.sequence, "durable_sequence": figures.durable_sequence,
            "mapped_bytes": figures.mapped_bytes, "journal_bytes": figures.journal_bytes,
        });
        Ok(value)
    }

    fn figures_of(&self, volume: &str, head: &Head, context: &Context<'_>) -> VolumeFigures {
        let mut figures = VolumeFigures {
            volume: volume.to_owned(),
            counters: context.doors.counters(head.id),
            size_bytes: self
                .catalogue
                .volumes
                .get(volume)
                .map_or(0, |spec| spec.size_bytes),
            mapped_bytes: 0,
            journal_bytes: 0,
            sequence: 0,
            durable_sequence: 0,
            sessions: context.doors.iscsi.sessions(head.id).len(),
        };
        if let Some(engine) = &head.engine {
            engine.with(|engine| {
                let store = engine.store();
                figures.mapped_bytes = store.state().index.mapped() * 4096;
                figures.journal_bytes = store.segment_bytes_used();
                figures.sequence = engine.last_seq();
                figures.durable_sequence = store.durable_seq();
            });
        }
        figures
    }

    fn figures(&self, context: &Context<'_>) -> Vec<VolumeFigures> {
        self.heads
            .iter()
            .map(|(volume, head)| self.figures_of(volume, head, context))
            .collect()
    }

    /// Stop taking new things, close every head, then end.
    fn drain(&mut self, context: &mut Context<'_>) {
        if !self.draining {
            log::info("draining", &[("heads", self.heads.len().into())]);
        }
        self.draining = true;
        let names: Vec<String> = self.heads.keys().cloned().collect();
        for volume in names {
            self.begin_close(&volume, context);
        }
    }

    fn engine_events(&mut self, context: &mut Context<'_>) {
        let mut events = Vec::new();
        for (volume, head) in &self.heads {
            if let Some(engine) = &head.engine {
                events.extend(
                    engine
                        .with(nuage_engine::VolumeHead::take_events)
                        .into_iter()
                        .map(|event| (volume.clone(), event)),
                );
            }
        }
        for (volume, event) in events {
            match event {
                HeadEvent::Administered { tag, outcome } => self.administered(
                    tag,
                    outcome.map_err(|error| journal_refusal(&error)),
                    context,
                ),
                HeadEvent::Fenced { epoch } => {
                    log::warn(
                        "head_fenced",
                        &[("volume", volume.as_str().into()), ("epoch", epoch.into())],
                    );
                    if let Some(head) = self.heads.get_mut(&volume) {
                        head.fenced = true;
                    }
                }
                HeadEvent::Store(StoreEvent::Receipt(receipt)) => {
                    match self.receipts.keep(&volume, &receipt) {
                        Ok(value) => {
                            let line = json!({"event": "receipt", "receipt": value})
                                .to_string()
                                .into_bytes();
                            context.replies.extend(
                                self.receipts
                                    .followers
                                    .iter()
                                    .map(|client| (*client, line.clone())),
                            );
                        }
                        Err(error) => {
                            log::error("receipt_not_kept", &[("error", error.to_string().into())])
                        }
                    }
                }
                HeadEvent::Store(StoreEvent::HorizonMoved { seq, .. }) => {
                    log::info(
                        "horizon_moved",
                        &[("volume", volume.into()), ("sequence", seq.into())],
                    );
                }
                HeadEvent::Store(StoreEvent::Failed(error)) => {
                    log::error(
                        "volume_failed",
                        &[
                            ("volume", volume.into()),
                            ("error", error.to_string().into()),
                        ],
                    );
                }
                // Facts for people: what was repaired, what was read or became durable.
                HeadEvent::Store(_) => {}
                other => log::info(
                    "head_event",
                    &[
                        ("volume", volume.into()),
                        ("event", format!("{other:?}").into()),
                    ],
                ),
            }
        }
    }

    fn administered(&mut self, tag: u64, outcome: Result<u64, Refusal>, context: &mut Context<'_>) {
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
                if let Some(id) = self.heads.get(&volume).map(|head| head.id) {
                    if let Some(geometry) = context
                        .doors
                        .device(id)
                        .map(nuage_block::BlockDevice::geometry)
                    {
                        context.doors.nbd.set_geometry(id, geometry.clone());
                        if let Some(unit) = context.doors.iscsi.unit_mut(id) {
                            unit.set_geometry(geometry);
                        }
                    }
                }
                reply(context, &asker, result);
            }
            _ => {}
        }
    }

    fn run_fills(&mut self, context: &mut Context<'_>) {
        let jobs: Vec<u64> = self.fills.keys().copied().collect();
        for job in jobs {
            self.run_fill(job, context);
        }
    }

    fn run_fill(&mut self, job: u64, context: &mut Context<'_>) {
        loop {
            let Some(fill) = self.fills.get_mut(&job) else {
                return;
            };
            let id = self
                .heads
                .get(&fill.volume)
                .filter(|head| !head.closing)
                .map(|head| head.id);
            let Some(chunk) = fill.next() else { break };
            let (operation, bytes) = match chunk {
                Chunk::Data { offset, data } => {
                    let bytes = data.len() as u64;
                    (
                        Operation::Write {
                            offset,
                            data,
                            fua: false,
                        },
                        bytes,
                    )
                }
                Chunk::Zeros { offset, length } => (Operation::Unmap { offset, length }, length),
                Chunk::Failed(message) => {
                    fill.failure = Some(message);
                    continue;
                }
            };
            let Some(id) = id else {
                fill.failure = Some("the head was closed".to_owned());
                continue;
            };
            fill.in_flight += 1;
            let token = self.remember(Pending::Fill { job, bytes });
            context.doors.ask(id, token, operation);
        }
        self.end_fill(job, context);
    }

    fn end_fill(&mut self, job: u64, context: &mut Context<'_>) {
        let Some(fill) = self.fills.get_mut(&job) else {
            return;
        };
        if !fill.ended || fill.in_flight > 0 || fill.flushing {
            return;
        }
        let asker = (fill.client, fill.id.clone());
        if let Some(message) = fill.failure.take() {
            self.fills.remove(&job);
            return reply(context, &asker, Err(Refusal::new(Code::Io, message)));
        }
        fill.flushing = true;
        if let Some(id) = self.heads.get(&fill.volume).map(|head| head.id) {
            let token = self.remember(Pending::FillFlush { job });
            context.doors.ask(id, token, Operation::Flush);
        }
    }

    fn filled(&mut self, job: u64, bytes: u64, outcome: &Outcome, context: &mut Context<'_>) {
        if let Some(fill) = self.fills.get_mut(&job) {
            fill.in_flight -= 1;
            fill.done_bytes += bytes;
            if let Outcome::Failed(failure) = outcome {
                fill.failure = Some(failure.to_string());
            }
            if fill.tells() {
                let line = json!({
                    "id": fill.id,
                    "progress": {"done_bytes": fill.done_bytes, "total_bytes": fill.total_bytes},
                });
                context
                    .replies
                    .push((fill.client, line.to_string().into_bytes()));
            }
        }
        self.run_fill(job, context);
    }

    fn finish_closings(&mut self, context: &mut Context<'_>) {
        if self.draining && self.heads.is_empty() {
            for asker in std::mem::take(&mut self.drain_askers) {
                reply(context, &asker, Ok(json!({})));
            }
            *context.stop = true;
        }
    }
}

impl Daemon for Storaged {
    fn line(&mut self, client: ClientId, line: &[u8], context: &mut Context<'_>) {
        let (id, result) = match control::parse(line) {
            Ok(envelope) => {
                let asker = (client, envelope.id);
                let result = self.handle(envelope.request, &asker, context);
                (asker.1, result)
            }
            Err((id, refusal)) => (id, Err(refusal)),
        };
        match result {
            Ok(None) => {}
            Ok(Some(value)) => reply(context, &(client, id), Ok(value)),
            Err(refusal) => reply(context, &(client, id), Err(refusal)),
        }
    }

    fn client_gone(&mut self, client: ClientId) {
        self.receipts
            .followers
            .retain(|follower| *follower != client);
    }

    fn answer(&mut self, answer: Answer, context: &mut Context<'_>) {
        let done = match &answer.outcome {
            Outcome::Failed(failure) => Err(failure_refusal(*failure)),
            _ => Ok(()),
        };
        match self.pending.remove(&answer.token) {
            Some(Pending::Open {
                volume,
                open,
                asker,
            }) => {
                let result = self.opened(&volume, &open, answer.outcome, context);
                if result.is_err() {
                    self.begin_close(&volume, context);
                }
                reply(context, &asker, result);
            }
            Some(Pending::Flush { asker }) => reply(context, &asker, done.map(|()| json!({}))),
            Some(Pending::CloseFlush { volume }) => {
                let id = self.heads.get(&volume).map(|head| head.id);
                if id.is_some_and(|id| context.doors.quiet(id) && !context.doors.iscsi.busy(id))
                    || done.is_err()
                {
                    self.finish_close(&volume, done, context);
                } else if let Some(id) = id {
                    // Something was still in flight when the flush began: once more.
                    let token = self.remember(Pending::CloseFlush { volume });
                    context.doors.ask(id, token, Operation::Flush);
                }
            }
            Some(Pending::Fill { job, bytes }) => self.filled(job, bytes, &answer.outcome, context),
            Some(Pending::FillFlush { job }) => {
                if let Some(fill) = self.fills.remove(&job) {
                    let value = json!({"total_bytes": fill.total_bytes});
                    reply(context, &(fill.client, fill.id), done.map(|()| value));
                }
            }
            _ => {}
        }
        self.engine_events(context);
        self.finish_closings(context);
    }

    fn terminate(&mut self, context: &mut Context<'_>) {
        self.drain(context);
    }

    fn turn(&mut self, context: &mut Context<'_>) {
        // Empty when another turn has drained it: that is no error.
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        self.engine_events(context);
        self.run_fills(context);
        self.finish_closings(context);
    }

    fn wake_within(&self) -> Option<Duration> {
        let closing = self.draining || self.heads.values().any(|head| head.closing);
        closing.then_some(CLOSING_POLL)
    }

    fn worker_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.wake.as_fd())
    }
}
