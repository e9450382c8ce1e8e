//! What planes of other layouts left pinned: taken away once none of it forwards any more.
//!
//! A release with another layout pins beside the old one, whose programs go on until each port is
//! bound anew. A port's program is in use while it hangs at a hook of an interface that is one of
//! the node's ports. All else is left over, as on a line or a cable that the node no longer uses,
//! and is taken off. Interfaces are those in the calling thread's network namespace: the node's.

use crate::intf::INTF_VERSION;
use crate::plane::{Hook, detach_tc, detach_xdp, tc_program, xdp_programs};
use crate::{BpfError, ffi, log};
use std::collections::BTreeMap;
use std::ffi::{CString, c_int};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const PRIORITY_MAX: u32 = 8; // of our tc filters: half of them is in use
const OF_PORTS: [&str; 4] = ["trunk_in", "access_in", "access_out", "xdp_trunk"];

/// A program at an interface; no hook: XDP.
struct Attached {
    program: u32,
    ifindex: c_int,
    at: Option<(Hook, u32)>,
}

/// Unpin planes of other layouts below `directory` that no port uses; return their names.
///
/// `ports` are the interfaces that are the node's ports.
pub fn forget_others(directory: &Path, ports: &[c_int]) -> Result<Vec<String>, BpfError> {
    let others = others(directory)?;
    let mut gone = Vec::new();
    if others.is_empty() {
        return Ok(gone);
    }
    let attached = attached()?;
    for (name, home) in others {
        let pinned = programs_below(&home)?;
        let here = |each: &&Attached| pinned.contains_key(&each.program);
        let serves = |each: &Attached| {
            let name = pinned[&each.program].as_str();
            OF_PORTS.contains(&name) && ports.contains(&each.ifindex)
        };
        if attached.iter().filter(here).any(serves) {
            continue;
        }
        for left in attached.iter().filter(here) {
            match left.at {
                Some((hook, priority)) => detach_tc(left.ifindex, hook, priority)?,
                None => detach_xdp(left.ifindex)?,
            }
        }
        unpin(&home)?;
        gone.push(name);
    }
    Ok(gone)
}

/// Return the layouts but ours that are pinned there, by name.
fn others(directory: &Path) -> Result<Vec<(String, PathBuf)>, BpfError> {
    let mut found = Vec::new();
    for path in listed(directory)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let version = name.strip_prefix('v').and_then(|rest| rest.parse().ok());
        if version.is_some_and(|version: u32| version != INTF_VERSION) {
            found.push((name.into_owned(), path));
        }
    }
    Ok(found)
}

fn listed(directory: &Path) -> Result<Vec<PathBuf>, BpfError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries,
    };
    entries
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(|source| pin_error(directory, source))
}

fn pin_error(path: &Path, source: io::Error) -> BpfError {
    BpfError::Pin {
        path: path.to_owned(),
        source,
    }
}

/// Return what hangs at our places of all interfaces here.
fn attached() -> Result<Vec<Attached>, BpfError> {
    let mut found = Vec::new();
    log::begin();
    for ifindex in interfaces() {
        for hook in [Hook::Ingress, Hook::Egress] {
            for priority in 1..=PRIORITY_MAX {
                found.extend(
                    tc_program(ifindex, hook, priority)?.map(|program| Attached {
                        program,
                        ifindex,
                        at: Some((hook, priority)),
                    }),
                );
            }
        }
        found.extend(xdp_programs(ifindex)?.into_iter().map(|program| Attached {
            program,
            ifindex,
            at: None,
        }));
    }
    Ok(found)
}

fn interfaces() -> Vec<c_int> {
    let mut found = Vec::new();
    // SAFETY: glibc's list ends with an index of 0 and is given back once; null: there is none.
    unsafe {
        let list = ffi::if_nameindex();
        let mut next = list;
        while !next.is_null() && (*next).index != 0 {
            found.extend(c_int::try_from((*next).index));
            next = next.add(1);
        }
        if !list.is_null() {
            ffi::if_freenameindex(list);
        }
    }
    found
}

/// Return the names of a layout's programs by the kernel's numbers of them.
fn programs_below(home: &Path) -> Result<BTreeMap<u32, String>, BpfError> {
    let named = |path: PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Ok((program_id(&path)?, name.into_owned()))
    };
    let pinned = listed(&home.join("programs"))?;
    pinned.into_iter().map(named).collect()
}

fn program_id(path: &Path) -> Result<u32, BpfError> {
    let text = CString::new(path.as_os_str().as_bytes())
        .map_err(|error| pin_error(path, io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    // SAFETY: the path is a string.
    let fd = unsafe { ffi::bpf_obj_get(text.as_ptr()) };
    if fd < 0 {
        return Err(pin_error(path, io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is fresh and ours.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut info = [0_u32; 2]; // the head of struct bpf_prog_info: type, id
    let mut size = 8_u32;
    // SAFETY: the kernel writes `size` bytes at most.
    let failed = unsafe {
        ffi::bpf_obj_get_info_by_fd(program.as_raw_fd(), info.as_mut_ptr().cast(), &raw mut size)
    };
    if failed != 0 {
        return Err(pin_error(path, io::Error::last_os_error()));
    }
    Ok(info[1])
}

fn unpin(home: &Path) -> Result<(), BpfError> {
    for part in listed(home)? {
        for pin in listed(&part)? {
            fs::remove_file(&pin).map_err(|source| pin_error(&pin, source))?;
        }
        fs::remove_dir(&part).map_err(|source| pin_error(&part, source))?;
    }
    fs::remove_dir(home).map_err(|source| pin_error(home, source))
}
