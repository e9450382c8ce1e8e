//! The volumes of a daemon and the two doors to them, on one thread.
//!
//! Requests of the iSCSI and NBD machines go to the volumes' devices, completions back to whoever
//! asked; the daemon itself may ask too ([`Doors::ask`]). A device's tag says who asked:
//!
//! ```text
//! bits 63..60 door (0 iSCSI, 1 NBD, 2 the daemon) | bits 59..0 the door's own tag
//! ```

use nuage_block::{BlockDevice, Completion, Operation, Outcome, Request};
use std::collections::{BTreeMap, VecDeque};

pub type VolumeId = u32;

/// Of what came at once, so much is taken before its requests begin: a device copies small writes, and that much is
/// still in the processor's nearest cache then.
const PIECE_BYTES: usize = 16 * 1024;

const DOOR_SHIFT: u32 = 60;
const ISCSI: u64 = 0;
const NBD: u64 = 1;
const OWN: u64 = 2;

struct Volume {
    device: Box<dyn BlockDevice>,
    in_flight: usize,
    /// Requests beyond the device's queue.
    waiting: VecDeque<Request>,
}

/// An answer to something the daemon asked.
#[derive(Debug)]
pub struct Answer {
    pub volume: VolumeId,
    pub token: u64,
    pub outcome: Outcome,
}

/// Counters of a volume since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub others: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub failures: u64,
}

pub struct Doors {
    pub iscsi: nuage_scsi::Server,
    pub nbd: nuage_nbd::Server,
    volumes: BTreeMap<VolumeId, Volume>,
    counters: BTreeMap<VolumeId, Counters>,
    answers: Vec<Answer>,
    /// Something was asked since the last pump.
    asked: bool,
    /// Descriptors of the daemon's own devices: copies that serve heads elsewhere.
    pub(crate) also_watched: BTreeMap<VolumeId, i32>,
    /// Devices came or went since the loop last looked.
    pub(crate) changed: bool,
    requests: Vec<(VolumeId, Request)>,
    completions: Vec<Completion>,
}

impl Doors {
    pub fn new(iscsi: nuage_scsi::Server, nbd: nuage_nbd::Server) -> Self {
        Self {
            iscsi,
            nbd,
            volumes: BTreeMap::new(),
            counters: BTreeMap::new(),
            answers: Vec::new(),
            asked: false,
            also_watched: BTreeMap::new(),
            changed: true,
            requests: Vec::new(),
            completions: Vec::new(),
        }
    }

    /// Put a device behind the doors' targets and exports of the same number.
    pub fn add_volume(&mut self, id: VolumeId, device: Box<dyn BlockDevice>) {
        self.changed = true;
        self.volumes.insert(
            id,
            Volume {
                device,
                in_flight: 0,
                waiting: VecDeque::new(),
            },
        );
        self.counters.insert(id, Counters::default());
    }

    /// Take the device back; what it still holds is not answered.
    pub fn remove_volume(&mut self, id: VolumeId) -> Option<Box<dyn BlockDevice>> {
        self.changed = true;
        self.counters.remove(&id);
        self.volumes.remove(&id).map(|volume| volume.device)
    }

    /// True while somebody waits for a volume's answer.
    pub(crate) fn owes_answers(&self) -> bool {
        self.volumes.values().any(|volume| volume.in_flight > 0)
    }

    /// True when nothing of this volume is in flight.
    pub fn quiet(&self, id: VolumeId) -> bool {
        self.volumes
            .get(&id)
            .is_none_or(|volume| volume.in_flight == 0 && volume.waiting.is_empty())
    }

    pub fn device(&self, id: VolumeId) -> Option<&dyn BlockDevice> {
        self.volumes.get(&id).map(|volume| volume.device.as_ref())
    }

    pub fn counters(&self, id: VolumeId) -> Counters {
        self.counters.get(&id).copied().unwrap_or_default()
    }

    pub(crate) fn volumes(&self) -> impl Iterator<Item = (VolumeId, &dyn BlockDevice)> {
        self.volumes
            .iter()
            .map(|(id, volume)| (*id, volume.device.as_ref()))
    }

    /// Ask a volume for something on the daemon's own behalf; the answer carries `token`.
    pub fn ask(&mut self, id: VolumeId, token: u64, operation: Operation) {
        self.asked = true;
        match self.volumes.get_mut(&id) {
            Some(volume) => volume.take(Request {
                tag: OWN << DOOR_SHIFT | token,
                operation,
            }),
            None => self.answers.push(Answer {
                volume: id,
                token,
                outcome: Outcome::Failed(nuage_block::Failure::Unavailable),
            }),
        }
    }

    /// Wake the loop for a descriptor that belongs to no volume here, under an unused number.
    pub fn watch(&mut self, id: VolumeId, fd: i32) {
        self.changed = true;
        self.also_watched.insert(id, fd);
    }

    pub fn unwatch(&mut self, id: VolumeId) {
        self.changed = true;
        self.also_watched.remove(&id);
    }

    pub(crate) fn was_asked(&self) -> bool {
        self.asked
    }

    pub fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }

    /// Bytes came for a connection of the iSCSI door. [`Doors::pump`] follows.
    pub(crate) fn receive_iscsi(&mut self, id: nuage_scsi::ConnectionId, input: &[u8]) {
        let mut pieces = input.chunks(PIECE_BYTES);
        self.iscsi.receive(id, pieces.next().unwrap_or_default());
        for piece in pieces {
            self.submit();
            self.iscsi.receive(id, piece);
        }
    }

    /// Move requests to the devices and completions back until neither side has any.
    ///
    /// True when anything moved.
    pub fn pump(&mut self) -> bool {
        let mut moved = std::mem::take(&mut self.asked);
        loop {
            let asked = self.submit();
            let answered = self.collect();
            if !asked && !answered {
                return moved;
            }
            moved = true;
        }
    }

    fn submit(&mut self) -> bool {
        let mut requests = std::mem::take(&mut self.requests);
        self.iscsi.take_requests(&mut requests);
        let iscsi_count = requests.len();
        self.nbd.take_requests(&mut requests);
        let any = !requests.is_empty();
        for (index, (id, mut request)) in requests.drain(..).enumerate() {
            let door = if index < iscsi_count { ISCSI } else { NBD };
            request.tag |= door << DOOR_SHIFT;
            if let Some(counters) = self.counters.get_mut(&id) {
                counters.count(&request.operation);
            }
            if let Some(volume) = self.volumes.get_mut(&id) {
                volume.take(request);
            } else {
                let outcome = Outcome::Failed(nuage_block::Failure::Unavailable);
                self.route(
                    id,
                    Completion {
                        tag: request.tag,
                        outcome,
                    },
                );
            }
        }
        self.requests = requests;
        any
    }

    fn collect(&mut self) -> bool {
        let mut completions = std::mem::take(&mut self.completions);
        let mut any = false;
        let ids: Vec<VolumeId> = self.volumes.keys().copied().collect();
        for id in ids {
            let Some(volume) = self.volumes.get_mut(&id) else {
                continue;
            };
            volume.device.poll(&mut completions);
            volume.in_flight = volume.in_flight.saturating_sub(completions.len());
            volume.refill();
            any |= !completions.is_empty();
            for completion in completions.drain(..) {
                self.route(id, completion);
            }
        }
        self.completions = completions;
        any
    }

    fn route(&mut self, id: VolumeId, mut completion: Completion) {
        if let (Outcome::Failed(_), Some(counters)) =
            (&completion.outcome, self.counters.get_mut(&id))
        {
            counters.failures += 1;
        }
        let door = completion.tag >> DOOR_SHIFT;
        completion.tag &= (1 << DOOR_SHIFT) - 1;
        match door {
            ISCSI => self.iscsi.complete(completion),
            NBD => self.nbd.complete(completion),
            _ => self.answers.push(Answer {
                volume: id,
                token: completion.tag,
                outcome: completion.outcome,
            }),
        }
    }
}

impl Volume {
    fn take(&mut self, request: Request) {
        if self.waiting.is_empty() && self.in_flight < self.device.queue_depth_max() {
            self.in_flight += 1;
            self.device.submit(request);
        } else {
            self.waiting.push_back(request);
        }
    }

    fn refill(&mut self) {
        while self.in_flight < self.device.queue_depth_max() {
            let Some(request) = self.waiting.pop_front() else {
                return;
            };
            self.in_flight += 1;
            self.device.submit(request);
        }
    }
}

impl Counters {
    fn count(&mut self, operation: &Operation) {
        match operation {
            Operation::Read { length, .. } => {
                self.reads += 1;
                self.read_bytes += u64::from(*length);
            }
            Operation::Write { data, .. } | Operation::CompareAndWrite { data, .. } => {
                self.writes += 1;
                self.written_bytes += data.len() as u64;
            }
            Operation::Flush => self.flushes += 1,
            _ => self.others += 1,
        }
    }
}
