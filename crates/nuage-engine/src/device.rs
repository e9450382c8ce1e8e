//! A head and its past as block devices.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nuage_block::{BlockDevice, Completion, Failure, Geometry, Operation, Outcome, Request};
use nuage_journal::{Disk, JournalError, Point};

use crate::extents::extents;
use crate::head::{QUEUE_DEPTH_MAX, VolumeHead};

/// A head that front ends, views and the daemon's control share on one thread.
pub struct Volume<D: Disk>(Rc<RefCell<VolumeHead<D>>>);

impl<D: Disk> Clone for Volume<D> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<D: Disk> Volume<D> {
    pub fn new(head: VolumeHead<D>) -> Self {
        Self(Rc::new(RefCell::new(head)))
    }

    /// Call `act` with the head. Not from within a call of the same head.
    pub fn with<R>(&self, act: impl FnOnce(&mut VolumeHead<D>) -> R) -> R {
        act(&mut self.0.borrow_mut())
    }

    /// The volume as it was at `point`, read-only.
    pub fn view(&self, point: Point) -> Result<ViewDevice<D>, JournalError> {
        let mut head = self.0.borrow_mut();
        let seq = head.store.resolve(point)?;
        let state = head.store.view(seq)?;
        let mut geometry = head.geometry();
        geometry.read_only = true;
        geometry.size_bytes = state.size_bytes;
        geometry.name = Arc::from(format!("{}@{seq}", geometry.name));
        let number = head.add_view(state);
        drop(head);
        Ok(ViewDevice {
            volume: self.clone(),
            number,
            geometry,
            seq,
            completions: Vec::new(),
        })
    }

    /// Take the head back, when nobody else holds it.
    pub fn into_head(self) -> Option<VolumeHead<D>> {
        Rc::try_unwrap(self.0).ok().map(RefCell::into_inner)
    }
}

impl<D: Disk> BlockDevice for Volume<D> {
    fn geometry(&self) -> Geometry {
        self.0.borrow().geometry()
    }

    fn submit(&mut self, request: Request) {
        self.0.borrow_mut().submit(request);
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        self.0.borrow_mut().poll(completions);
    }

    fn queue_depth_max(&self) -> usize {
        QUEUE_DEPTH_MAX
    }

    fn wake_fd(&self) -> Option<i32> {
        self.0.borrow().store.wake_fd()
    }

    fn poll_within(&self) -> Option<Duration> {
        self.0.borrow().poll_within()
    }
}

/// A past moment of a volume; its head must be polled as well (`poll` of this does it).
pub struct ViewDevice<D: Disk> {
    volume: Volume<D>,
    number: u64,
    geometry: Geometry,
    seq: u64,
    completions: Vec<Completion>,
}

impl<D: Disk> ViewDevice<D> {
    /// The seq after which this is the volume.
    pub fn seq(&self) -> u64 {
        self.seq
    }
}

impl<D: Disk> Drop for ViewDevice<D> {
    fn drop(&mut self) {
        self.volume.0.borrow_mut().views.remove(&self.number);
    }
}

impl<D: Disk> BlockDevice for ViewDevice<D> {
    fn geometry(&self) -> Geometry {
        self.geometry.clone()
    }

    fn submit(&mut self, request: Request) {
        let tag = request.tag;
        let size = self.geometry.size_bytes;
        let inside = |offset: u64, length: u64| {
            offset.checked_add(length).is_some_and(|end| end <= size)
                && offset.is_multiple_of(512)
                && length.is_multiple_of(512)
        };
        let outcome = match request.operation {
            Operation::Read { offset, length } if inside(offset, u64::from(length)) => {
                let mut head = self.volume.0.borrow_mut();
                head.read_view(self.number, tag, offset, length as usize);
                return;
            }
            Operation::BlockStatus { offset, length } if inside(offset, length) => {
                let head = self.volume.0.borrow();
                let found = head.views.get(&self.number).map_or_else(Vec::new, |view| {
                    extents(&view.index, std::iter::empty(), offset, length)
                });
                Outcome::Extents(found)
            }
            Operation::Read { .. } | Operation::BlockStatus { .. } => {
                Outcome::Failed(Failure::OutOfRange)
            }
            Operation::Flush => Outcome::Done,
            Operation::LoadReservations => Outcome::Reservations(Vec::new()),
            _ => Outcome::Failed(Failure::ReadOnly),
        };
        self.completions.push(Completion { tag, outcome });
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) {
        completions.append(&mut self.completions);
        let mut head = self.volume.0.borrow_mut();
        head.poll_reads();
        if let Some(view) = head.views.get_mut(&self.number) {
            completions.append(&mut view.completions);
        }
    }

    fn queue_depth_max(&self) -> usize {
        QUEUE_DEPTH_MAX
    }

    fn wake_fd(&self) -> Option<i32> {
        self.volume.0.borrow().store.wake_fd()
    }
}
