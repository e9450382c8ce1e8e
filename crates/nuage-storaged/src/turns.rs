//! How soon the kernel lets this process run when something has come for it.

use std::mem::size_of;

/// Asked for with each turn on a processor, the least that the kernel takes (Linux 6.12; older ones take no notice). Who wants
/// little at a time has it sooner than those who were running, guests of this node first of all; the share of the processor
/// stays what it was. A write to a few copies is several processes that wait for each other.
const SLICE_NS: u64 = 100_000;

fn attributes() -> Option<libc::sched_attr> {
    let size = u32::try_from(size_of::<libc::sched_attr>()).ok()?;
    // SAFETY: all its fields are numbers.
    let mut found: libc::sched_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills `size` bytes, which are there, for the calling thread (0).
    let told = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut found, size, 0) };
    (told == 0).then_some(found)
}

/// For this thread and those that it starts. Whoever was started under another policy keeps it.
pub fn run_soon() {
    let Some(mut wished) = attributes() else {
        return;
    };
    if !matches!(i32::try_from(wished.sched_policy), Ok(libc::SCHED_OTHER)) {
        return;
    }
    wished.sched_runtime = SLICE_NS;
    // SAFETY: reads the attributes of the size that is in them.
    unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wished, 0) };
}

#[cfg(test)]
mod tests {
    use super::{SLICE_NS, attributes, run_soon};

    #[test]
    fn a_short_turn_is_asked_for_and_nothing_else_changes() {
        let (before, after) = std::thread::spawn(|| {
            let before = attributes();
            run_soon();
            (before, attributes())
        })
        .join()
        .expect("a thread");
        let (before, after) = (before.expect("attributes"), after.expect("attributes"));
        let kept =
            |found: &libc::sched_attr| (found.sched_policy, found.sched_nice, found.sched_flags);
        assert_eq!(kept(&before), kept(&after));
        // Kernels that know no such wish tell none.
        assert!(before.sched_runtime == 0 || after.sched_runtime == SLICE_NS);
    }
}
