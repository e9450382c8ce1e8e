//! What the daemon does with control requests, answers of volumes and events of the engine.

use crate::catalogue::{Catalogue, EngineVolume, hex};
use crate::control::{self, Code, CreateVolume, Credential, OpenHead, Refusal, Request};
use crate::disks::Disks;
use crate::fill::Fill;
use crate::metrics::{self};
use crate::options::Options;
use crate::receipts::Receipts;
use crate::replication::{Copies, HEARTBEAT, Peer};
use crate::scrubbing::{SCRUB_POLL, Scrubbing};
use crate::standby::Standby;
use crate::tidying::TIDY_EVERY;
use crate::views::View;
use nuage_block::{Failure, Operation, Outcome};
use nuage_engine::{SharedBucket, SharedBudget};
use nuage_io::doors::{Answer, VolumeId};
use nuage_io::link::LinkId;
use nuage_io::log;
use nuage_io::path::Identity;
use nuage_io::serve::{ClientId, Context, Daemon};
use nuage_scsi::{Access, chap::Account};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often closing heads are looked at; nothing else wakes the daemon for them.
const CLOSING_POLL: Duration = Duration::from_millis(20);

/// How often a head is driven while it has an administrative record to write.
const ADMINISTRATION_POLL: Duration = Duration::from_millis(5);

/// Who asked, and with which id.
pub(crate) type Asker = (ClientId, Value);

/// A served volume.
pub(crate) struct Head {
    pub(crate) id: VolumeId,
    pub(crate) engine: Option<EngineVolume>,
    pub(crate) epoch: u64,
    /// The id of the data key that it writes with.
    pub(crate) key_id: Option<String>,
    pub(crate) policy: String,
    pub(crate) iqn: Option<String>,
    pub(crate) nbd: Option<String>,
    pub(crate) ready: bool,
    pub(crate) closing: bool,
    pub(crate) close_askers: Vec<Asker>,
    /// Why it will never write again, as its state is called.
    pub(crate) ended: Option<&'static str>,
    pub(crate) failure: Option<String>,
    /// Ways to the copies elsewhere.
    pub(crate) peers: Vec<Peer>,
    pub(crate) limit: SharedBucket,
}

/// Something asked of a volume or its engine, by token.
pub(crate) enum Pending {
    Open {
        volume: String,
        open: Box<OpenHead>,
        /// `None`: answered already, the head waits for its copies.
        asker: Option<Asker>,
    },
    /// A flush, or a write of the control socket.
    Flush {
        asker: Asker,
    },
    ReadView {
        asker: Asker,
    },
    CloseFlush {
        volume: String,
        /// It closes without serving: it never did, or does not any more.
        gave_up: bool,
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
pub(crate) struct MarkGroup {
    pub(crate) asker: Asker,
    pub(crate) missing: usize,
    pub(crate) sequences: serde_json::Map<String, Value>,
    pub(crate) failure: Option<Refusal>,
}

pub struct Storaged {
    pub(crate) catalogue: Catalogue,
    pub(crate) heads: BTreeMap<String, Head>,
    pub(crate) views: BTreeMap<String, View>,
    pub(crate) standbys: BTreeMap<String, Standby>,
    pub(crate) pending: HashMap<u64, Pending>,
    pub(crate) marks: HashMap<u64, MarkGroup>,
    pub(crate) fills: BTreeMap<u64, Fill>,
    pub(crate) receipts: Receipts,
    pub(crate) copies: Copies,
    /// This node's name, from its certificate.
    pub(crate) node: String,
    pub(crate) next_token: u64,
    pub(crate) next_id: VolumeId,
    pub(crate) wake: Arc<OwnedFd>,
    pub(crate) draining: bool,
    pub(crate) drain_askers: Vec<Asker>,
    /// What all heads here may take of each disk together, and background work of it.
    pub(crate) budgets: BTreeMap<String, SharedBudget>,
    pub(crate) scrubbing: Scrubbing,
    pub(crate) tidied_at: Instant,
}

/// An answer now, or later through `Pending`.
pub(crate) type Handled = Result<Option<Value>, Refusal>;

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
pub(crate) fn access(
    chap: Option<&[Credential]>,
    own: Option<&Credential>,
    initiators: &[String],
) -> Result<Access, Refusal> {
    let closed = chap.is_some();
    let chap = chap.unwrap_or_default();
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
        closed,
        own: own.map(account),
        initiators: initiators.to_vec(),
    })
}

pub(crate) fn failure_refusal(failure: Failure) -> Refusal {
    let code = match failure {
        Failure::OutOfRange | Failure::ReadOnly => Code::InvalidRequest,
        Failure::Medium | Failure::Checksum { .. } => Code::Io,
        Failure::NoSpace => Code::NoSpace,
        Failure::Fenced => Code::StaleEpoch,
        Failure::Unavailable => Code::Unavailable,
    };
    Refusal::new(code, failure.to_string())
}

pub(crate) fn reply(context: &mut Context<'_>, asker: &Asker, result: Result<Value, Refusal>) {
    context
        .replies
        .push((asker.0, control::answer(&asker.1, result)));
}

impl Storaged {
    pub fn open(options: &Options, node: Option<String>) -> io::Result<Self> {
        let disks = Disks::new(
            &options.dir,
            &options.disks,
            options.base.as_ref(),
            &options.old_bases,
        )
        .with_lost_bases(&options.lost_bases);
        std::fs::create_dir_all(&options.dir)?;
        let mut receipts = Receipts::open(&options.dir)?;
        let catalogue = Catalogue::open(&options.dir, disks)?;
        receipts.forget_gone(&catalogue.disks)?;
        if options.all_disks {
            match catalogue.disks.remove_orphans() {
                Ok(removed) => {
                    for (disk, base) in removed {
                        receipts.end_base(disk.as_deref().unwrap_or_default(), &base)?;
                    }
                }
                // They go at another start.
                Err(error) => log::error(
                    "orphans_not_removed",
                    &[("error", error.to_string().into())],
                ),
            }
        }
        let budgets = catalogue
            .disks
            .names()
            .map(|disk| (disk.to_owned(), SharedBudget::default()));
        Ok(Self {
            budgets: budgets.collect(),
            catalogue,
            heads: BTreeMap::new(),
            views: BTreeMap::new(),
            standbys: BTreeMap::new(),
            pending: HashMap::new(),
            marks: HashMap::new(),
            fills: BTreeMap::new(),
            receipts,
            copies: Copies::default(),
            node: node.unwrap_or_else(|| "storaged".to_owned()),
            next_token: 1,
            next_id: 1,
            wake: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
            draining: false,
            drain_askers: Vec::new(),
            scrubbing: Scrubbing::default(),
            tidied_at: Instant::now(),
        })
    }

    pub(crate) fn remember(&mut self, pending: Pending) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.pending.insert(token, pending);
        token
    }

    pub(crate) fn new_id(&mut self) -> VolumeId {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    pub(crate) fn head(&self, volume: &str) -> Result<&Head, Refusal> {
        self.heads
            .get(volume)
            .filter(|head| head.ready && !head.closing)
            .ok_or_else(|| Refusal::new(Code::NotFound, format!("no open head of {volume:?} here")))
    }

    pub(crate) fn engine(&self, volume: &str) -> Result<&EngineVolume, Refusal> {
        let plain = || Refusal::new(Code::NotSupported, "this backend keeps no history");
        self.head(volume)?.engine.as_ref().ok_or_else(plain)
    }

    pub(crate) fn handle(
        &mut self,
        request: Request,
        asker: &Asker,
        context: &mut Context<'_>,
    ) -> Handled {
        let changes = matches!(
            request,
            Request::CreateVolume(_)
                | Request::CreateReplica(_)
                | Request::Clone(_)
                | Request::OpenHead(_)
                | Request::StandBy(_)
                | Request::At(_)
        );
        if self.draining && changes {
            return Err(Refusal::new(Code::Draining, "the daemon is going down"));
        }
        match request {
            Request::CreateVolume(spec) | Request::CreateReplica(spec) => {
                self.create(spec).map(Some)
            }
            Request::DeleteVolume { volume } => self.delete(&volume, context).map(Some),
            Request::OpenHead(open) => self.open_head(open, asker, context),
            Request::CloseHead { volume } => Ok(self.close_head(&volume, asker, context)),
            Request::SetChap(set) => self.set_chap(&set, context).map(Some),
            Request::StandBy(wish) => self.stand_by(&wish, context).map(Some),
            Request::EndStandby { volume } => {
                self.end_standby(&volume, context);
                Ok(Some(json!({"volume": volume})))
            }
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
            Request::At(wish) => self.at(wish, context).map(Some),
            Request::CloseAt { view } => Ok(Some(self.close_at(&view, context))),
            Request::Clone(wish) => self.clone_volume(&wish, context).map(Some),
            Request::Resolve { volume, moment } => {
                self.resolve(&volume, &moment, context).map(Some)
            }
            Request::Changed { view, since, after } => self.changed(&view, since, after).map(Some),
            Request::ReadView {
                view,
                offset,
                length,
            } => self.read_view(&view, offset, length, asker, context),
            Request::Write {
                volume,
                offset,
                data,
            } => self.write(&volume, offset, &data, asker, context),
            Request::VerifyChain { volume, after } => {
                self.verify_chain(&volume, after, context).map(Some)
            }
            Request::SetKey { key, earlier } => self.set_key(&key, &earlier).map(Some),
            Request::ForgetKey => Ok(Some(self.forget_key(context))),
            Request::SetLimits { volume, limits } => self.set_limits(&volume, limits).map(Some),
            Request::SetRetention { volume, retention } => {
                self.set_retention(&volume, retention).map(Some)
            }
            Request::SetLagBound { volume, lag_bound } => {
                self.set_lag_bound(&volume, &lag_bound).map(Some)
            }
            Request::SetShare { limits, disk } => self.set_share(&disk, limits).map(Some),
            Request::Scrub { volume } => self.scrub(&volume, context).map(Some),
            Request::Rollback {
                volume,
                moment,
                force,
            } => self.rollback(&volume, &moment, force, asker, context),
            Request::Mark { volumes, name } => self.mark(&volumes, &name, asker),
            Request::ReceiptsTaken { number } => self.receipts_taken(number).map(Some),
            Request::Receipts { after } => self.follow(after, asker, context).map(Some),
            Request::Metrics => Ok(Some(json!({"text": metrics::text(&self.figures(context))}))),
            Request::Shutdown => {
                self.drain_askers.push(asker.clone());
                self.drain(context);
                Ok(None)
            }
        }
    }

    pub(crate) fn create(&mut self, spec: CreateVolume) -> Result<Value, Refusal> {
        if !self.catalogue.volumes.contains_key(&spec.volume) {
            self.forget_copy(&spec.volume, &spec.disk); // of one that is not there any more
        }
        let spec = self.catalogue.create(spec)?;
        log::info("volume_created", &[("volume", spec.volume.as_str().into())]);
        Ok(json!({"volume": spec.volume, "uuid": spec.uuid, "size_bytes": spec.size_bytes}))
    }

    pub(crate) fn delete(
        &mut self,
        volume: &str,
        context: &mut Context<'_>,
    ) -> Result<Value, Refusal> {
        if self.heads.contains_key(volume) {
            return Err(Refusal::new(
                Code::Conflict,
                format!("{volume:?} is open: close_head first"),
            ));
        }
        self.end_standby(volume, context);
        drop(self.take_copy(volume, context));
        let disk = self.catalogue.disk_of(volume).to_owned();
        let aside = self.catalogue.retired.iter();
        let aside: Vec<String> = aside
            .filter(|retired| retired.volume == volume)
            .map(|retired| retired.disk.clone())
            .collect();
        self.catalogue.delete(volume)?;
        self.scrubbing.forget(volume);
        self.forget_copy(volume, &disk); // who asked tells of it
        for aside in aside {
            self.tell_removed(volume, &aside, &disk, context);
        }
        log::info("volume_deleted", &[("volume", volume.into())]);
        Ok(json!({"volume": volume}))
    }

    pub(crate) fn finish_closings(&mut self, context: &mut Context<'_>) {
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
                    if let (Some(head), Err(refusal)) = (self.heads.get_mut(&volume), &result) {
                        head.failure = Some(refusal.message.clone());
                    }
                    self.begin_close(&volume, context);
                }
                if let Some(asker) = asker {
                    reply(context, &asker, result);
                }
            }
            Some(Pending::Flush { asker }) => reply(context, &asker, done.map(|()| json!({}))),
            Some(Pending::ReadView { asker }) => {
                let data = match answer.outcome {
                    Outcome::Data(data) => hex(&data),
                    _ => String::new(),
                };
                reply(context, &asker, done.map(|()| json!({"data": data})));
            }
            Some(Pending::CloseFlush { volume, gave_up }) => {
                // A head that gave up has nothing of its own to flush: its copies hold what was acknowledged.
                let done = if gave_up { Ok(()) } else { done };
                let failed = matches!(answer.outcome, Outcome::Failed(_));
                let id = self.heads.get(&volume).map(|head| head.id);
                if id.is_some_and(|id| context.doors.quiet(id) && !context.doors.iscsi.busy(id))
                    || failed
                {
                    self.finish_close(&volume, done, context);
                } else if let Some(id) = id {
                    // Something was still in flight when the flush began: once more.
                    let token = self.remember(Pending::CloseFlush { volume, gave_up });
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

    fn link_up(
        &mut self,
        link: LinkId,
        token: Option<u64>,
        peer: &Identity,
        context: &mut Context<'_>,
    ) {
        self.replica_link_up(link, token, peer, context);
    }

    fn link_data(&mut self, link: LinkId, bytes: &[u8], context: &mut Context<'_>) {
        self.replica_data(link, bytes, context);
    }

    fn link_down(
        &mut self,
        link: LinkId,
        token: Option<u64>,
        reason: &str,
        _context: &mut Context<'_>,
    ) {
        self.replica_link_down(link, token, reason);
    }

    fn terminate(&mut self, context: &mut Context<'_>) {
        self.drain(context);
    }

    fn turn(&mut self, context: &mut Context<'_>) {
        self.run_replication(context);
        self.engine_events(context);
        self.run_fills(context);
        self.run_scrubs();
        self.tidy(context);
        self.finish_closings(context);
    }

    fn wake_within(&self) -> Option<Duration> {
        let closing = self.draining || self.heads.values().any(|head| head.closing);
        // A record of the administrator waits for all before it, and nothing else may wake the head.
        let administers = |pending: &Pending| {
            matches!(
                pending,
                Pending::Resize { .. } | Pending::Rollback { .. } | Pending::Mark { .. }
            )
        };
        if self.pending.values().any(administers) {
            return Some(ADMINISTRATION_POLL);
        }
        let replicated = self.heads.values().any(|head| !head.peers.is_empty());
        let busy = !self.heads.is_empty() || !self.copies.by_volume.is_empty();
        closing
            .then_some(CLOSING_POLL)
            .or_else(|| self.scrubbing.is_running().then_some(SCRUB_POLL))
            .or_else(|| replicated.then_some(HEARTBEAT))
            .or_else(|| busy.then_some(TIDY_EVERY))
    }

    fn worker_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.wake.as_fd())
    }

    fn worker_woke(&mut self) {
        // One read empties an eventfd; it fails only when it is empty already.
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
    }
}
