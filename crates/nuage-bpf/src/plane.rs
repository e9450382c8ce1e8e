//! One loaded set of programs and their maps.

use crate::intf::{FLOW_KEY_BYTES, FLOW_VALUE_BYTES, FLOWS_PER_PORT_MAX, INTF_VERSION, LAYOUT};
use crate::ring::Ring;
use crate::{BpfError, ffi, log};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_int};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};

static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/plane.bpf.o"));
const E_EXIST: i32 = 17;
const E_NOENT: i32 = 2;
const E_INVAL: i32 = 22;
const NOTHING_THERE: [c_int; 3] = [-E_NOENT, -E_INVAL, -E_NODEV]; // no filter, hook, interface
const FULL: [i32; 3] = [7, 12, 28]; // E2BIG, ENOMEM, ENOSPC: how maps say that they are full
const E_NODEV: i32 = 19;
const XDP_MODES: [c_int; 2] = [4, 2]; // in the driver, generic
const MAP_PERCPU_ARRAY: c_int = 6;

/// Where a program hooks in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Ingress,
    Egress,
}

impl Hook {
    fn attach_point(self) -> c_int {
        match self {
            Self::Ingress => ffi::TC_INGRESS,
            Self::Egress => ffi::TC_EGRESS,
        }
    }
}

/// A map of the object.
#[derive(Clone, Copy, Debug)]
pub struct MapShape {
    fd: RawFd,
    kind: c_int,
    pub key_size: usize,
    pub value_size: usize,
}

struct Object(NonNull<ffi::Object>);

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: opened by us, closed once.
        unsafe { ffi::bpf_object__close(self.0.as_ptr()) };
    }
}

/// The programs, loaded, and their maps.
pub struct Plane {
    _object: Object,
    maps: BTreeMap<String, MapShape>,
    programs: BTreeMap<String, RawFd>,
    ring: Ring,
    cpu_count: usize,
}

// SAFETY: the object is not touched after `open` but to close it; descriptors are the kernel's.
unsafe impl Send for Plane {}

/// Tell whether this kernel takes the programs, by loading them unpinned and letting go.
pub fn probe() -> Result<(), BpfError> {
    load(&open_object()?).map(drop)
}

fn open_object() -> Result<Object, BpfError> {
    log::begin();
    let options = ffi::OpenOptions {
        size: size_of::<ffi::OpenOptions>(),
        object_name: c"nuage".as_ptr(),
    };
    // SAFETY: OBJECT is static, the options are ours for the time of the call.
    let object = unsafe {
        ffi::bpf_object__open_mem(OBJECT.as_ptr().cast(), OBJECT.len(), &raw const options)
    };
    NonNull::new(object).map(Object).ok_or_else(load_error)
}

fn load(object: &Object) -> Result<(), BpfError> {
    // SAFETY: the object is open.
    match unsafe { ffi::bpf_object__load(object.0.as_ptr()) } {
        0 => Ok(()),
        _ => Err(load_error()),
    }
}

fn load_error() -> BpfError {
    let source = io::Error::last_os_error();
    BpfError::Load {
        log: log::take(),
        source,
    }
}

fn c_path(path: &Path) -> Result<CString, BpfError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|error| BpfError::Pin {
        path: path.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidInput, error),
    })
}

/// # Safety
/// `name` is a string of libbpf's that lives as long as its object.
unsafe fn owned(name: *const std::ffi::c_char) -> String {
    // SAFETY: by contract.
    unsafe { CStr::from_ptr(name) }
        .to_string_lossy()
        .into_owned()
}

impl Plane {
    /// Load the programs on the maps pinned below `directory`, or on fresh ones.
    ///
    /// An empty `directory` pins nothing: the plane ends with this process, but for what tc holds.
    pub fn open(directory: &Path) -> Result<Self, BpfError> {
        let object = open_object()?;
        let home =
            (!directory.as_os_str().is_empty()).then(|| directory.join(format!("v{INTF_VERSION}")));
        if let Some(home) = &home {
            make(&home.join("maps"))?;
            make(&home.join("programs"))?;
            pin_maps(&object, &home.join("maps"))?;
        }
        load(&object)?;
        let maps = maps_of(&object)?;
        let programs = programs_of(&object, home.as_deref())?;
        let events = maps.get("events").map_or(-1, |map| map.fd);
        // SAFETY: asks a file of /sys.
        let cpu_count = unsafe { ffi::libbpf_num_possible_cpus() };
        Ok(Self {
            _object: object,
            maps,
            programs,
            ring: Ring::open(events)?,
            cpu_count: usize::try_from(cpu_count).unwrap_or(1),
        })
    }

    /// Return the shapes of the maps.
    pub fn maps(&self) -> &BTreeMap<String, MapShape> {
        &self.maps
    }

    fn map(&self, name: &str) -> Result<&MapShape, BpfError> {
        self.maps.get(name).ok_or_else(|| BpfError::NoSuch {
            kind: "map",
            name: name.to_owned(),
        })
    }

    fn program(&self, name: &str) -> Result<RawFd, BpfError> {
        self.programs
            .get(name)
            .copied()
            .ok_or_else(|| BpfError::NoSuch {
                kind: "program",
                name: name.to_owned(),
            })
    }

    /// Set as many elements as there are keys and values, one after the other.
    pub fn update(&self, name: &str, keys: &[u8], values: &[u8]) -> Result<(), BpfError> {
        let map = self.map(name)?;
        whole(name, "keys", keys.len(), map.key_size)?;
        if values.len() != keys.len() / map.key_size * map.value_size {
            return Err(BpfError::Size {
                map: name.to_owned(),
                what: "values",
                found: values.len(),
                size: map.value_size,
            });
        }
        let pairs = keys
            .chunks_exact(map.key_size)
            .zip(values.chunks_exact(map.value_size));
        for (key, value) in pairs {
            // SAFETY: both slices have the sizes that the map says.
            let failed = unsafe {
                ffi::bpf_map_update_elem(
                    map.fd,
                    key.as_ptr().cast(),
                    value.as_ptr().cast(),
                    ffi::ANY,
                )
            };
            if failed != 0 {
                return Err(update_error(name));
            }
        }
        Ok(())
    }

    /// Take elements away; those that are not there do not matter. Return how many were.
    pub fn delete(&self, name: &str, keys: &[u8]) -> Result<usize, BpfError> {
        let map = self.map(name)?;
        whole(name, "keys", keys.len(), map.key_size)?;
        let mut count = 0;
        for key in keys.chunks_exact(map.key_size) {
            // SAFETY: the key has the size that the map says.
            if unsafe { ffi::bpf_map_delete_elem(map.fd, key.as_ptr().cast()) } == 0 {
                count += 1;
                continue;
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(E_NOENT) {
                return Err(BpfError::system(format!("delete from map {name}"), error));
            }
        }
        Ok(count)
    }

    /// Return a value, the sum over all processors for a per-CPU map of numbers.
    pub fn lookup(&self, name: &str, key: &[u8]) -> Result<Option<Vec<u8>>, BpfError> {
        let map = self.map(name)?;
        whole(name, "keys", key.len(), map.key_size)?;
        if key.len() != map.key_size {
            return Ok(None);
        }
        let is_percpu = map.kind == MAP_PERCPU_ARRAY;
        let copies = if is_percpu { self.cpu_count } else { 1 };
        let mut value = vec![0_u8; map.value_size.next_multiple_of(8) * copies];
        // SAFETY: the kernel writes value_size bytes, rounded up to 8 for each CPU when per-CPU.
        let failed = unsafe {
            ffi::bpf_map_lookup_elem(map.fd, key.as_ptr().cast(), value.as_mut_ptr().cast())
        };
        if failed != 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(E_NOENT) => Ok(None),
                _ => Err(BpfError::system(format!("read map {name}"), error)),
            };
        }
        if is_percpu {
            return Ok(Some(sum(&value).to_ne_bytes().to_vec()));
        }
        value.truncate(map.value_size);
        Ok(Some(value))
    }

    /// Return all keys and values, each joined, as far as they stand still while read.
    pub fn items(&self, name: &str) -> Result<(Vec<u8>, Vec<u8>), BpfError> {
        let map = *self.map(name)?;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for key in self.keys(&map) {
            if let Some(value) = self.lookup(name, &key)? {
                keys.extend_from_slice(&key);
                values.extend_from_slice(&value);
            }
        }
        Ok((keys, values))
    }

    #[expect(clippy::unused_self, reason = "the map is open while the plane is")]
    fn keys(&self, map: &MapShape) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        let mut next = vec![0_u8; map.key_size];
        let mut previous = ptr::null();
        // SAFETY: `next` has the map's key size; `previous` is null or the key found last.
        while unsafe { ffi::bpf_map_get_next_key(map.fd, previous, next.as_mut_ptr().cast()) } == 0
        {
            keys.push(next.clone());
            previous = keys.last().map_or(ptr::null(), |key| key.as_ptr().cast());
        }
        keys
    }

    /// Put a fresh, empty table of open flows at `port`: what was open is closed.
    pub fn renew_flows(&self, port: u32) -> Result<(), BpfError> {
        // SAFETY: a plain call of bpf(2); the name is static.
        let fd = unsafe {
            ffi::bpf_map_create(
                ffi::MAP_LRU_HASH,
                c"port_flows".as_ptr(),
                FLOW_KEY_BYTES,
                FLOW_VALUE_BYTES,
                FLOWS_PER_PORT_MAX,
                ptr::null(),
            )
        };
        if fd < 0 {
            return Err(update_error("flows"));
        }
        // SAFETY: the descriptor is fresh and ours.
        let table = unsafe { OwnedFd::from_raw_fd(fd) };
        self.update(
            "flows",
            &port.to_ne_bytes(),
            &table.as_raw_fd().to_ne_bytes(),
        )
    }

    /// Put a program at a tc hook of an interface of this thread's network namespace.
    ///
    /// What stood there under the same `priority` is replaced without a frame lost.
    pub fn attach(
        &self,
        program: &str,
        ifindex: i32,
        hook: Hook,
        priority: u32,
    ) -> Result<(), BpfError> {
        let fd = self.program(program)?;
        let mut at = tc_hook(ifindex, hook);
        log::begin();
        // SAFETY: the structure is whole and ours.
        let made = unsafe { ffi::bpf_tc_hook_create(&raw mut at) };
        if made != 0 && made != -E_EXIST {
            return Err(attach_error(program, ifindex, made));
        }
        let mut options = tc_options(fd, ffi::TC_REPLACE, priority);
        // SAFETY: as above.
        let failed = unsafe { ffi::bpf_tc_attach(&raw const at, &raw mut options) };
        if failed != 0 {
            return Err(attach_error(program, ifindex, failed));
        }
        Ok(())
    }

    /// Take away what stands at a tc hook under `priority`; nothing there is fine.
    pub fn detach(&self, ifindex: i32, hook: Hook, priority: u32) -> Result<(), BpfError> {
        detach_tc(ifindex, hook, priority)
    }

    /// Put the XDP program on an interface (`flags`: 2 generic, 4 in the driver, 0 either).
    pub fn attach_xdp(&self, program: &str, ifindex: i32, flags: u32) -> Result<(), BpfError> {
        let fd = self.program(program)?;
        log::begin();
        // SAFETY: numbers only.
        match unsafe { ffi::bpf_xdp_attach(ifindex, fd, flags, ptr::null()) } {
            0 => Ok(()),
            error => Err(attach_error(program, ifindex, error)),
        }
    }

    /// Take the XDP program off an interface, in whichever mode it is there.
    pub fn detach_xdp(&self, ifindex: i32) -> Result<(), BpfError> {
        detach_xdp(ifindex)
    }

    /// Return a descriptor that is readable when `events` has some.
    pub fn event_descriptor(&self) -> RawFd {
        self.ring.descriptor()
    }

    /// Return the events that wait.
    pub fn events(&mut self) -> Vec<Vec<u8>> {
        self.ring.drain()
    }
}

fn make(directory: &Path) -> Result<(), BpfError> {
    fs::create_dir_all(directory).map_err(|source| BpfError::Pin {
        path: directory.to_owned(),
        source,
    })
}

fn pin_maps(object: &Object, directory: &Path) -> Result<(), BpfError> {
    let mut map = ptr::null_mut();
    loop {
        // SAFETY: the object is open; null asks for the first map.
        map = unsafe { ffi::bpf_object__next_map(object.0.as_ptr(), map) };
        if map.is_null() {
            return Ok(());
        }
        // SAFETY: a map of an open object has a name.
        let name = unsafe { owned(ffi::bpf_map__name(map)) };
        if name.contains('.') {
            continue; // the programs' constants: theirs alone, and no file name here
        }
        let path = directory.join(name);
        let text = c_path(&path)?;
        // SAFETY: libbpf copies the path.
        if unsafe { ffi::bpf_map__set_pin_path(map, text.as_ptr()) } != 0 {
            let source = io::Error::last_os_error();
            return Err(BpfError::Pin { path, source });
        }
    }
}

fn maps_of(object: &Object) -> Result<BTreeMap<String, MapShape>, BpfError> {
    let mut maps = BTreeMap::new();
    let mut map = ptr::null_mut();
    loop {
        // SAFETY: the object is open; null asks for the first map.
        map = unsafe { ffi::bpf_object__next_map(object.0.as_ptr(), map) };
        if map.is_null() {
            break;
        }
        // SAFETY: the map belongs to the open, loaded object.
        let (name, shape) = unsafe {
            (
                owned(ffi::bpf_map__name(map)),
                MapShape {
                    fd: ffi::bpf_map__fd(map),
                    kind: ffi::bpf_map__type(map),
                    key_size: ffi::bpf_map__key_size(map) as usize,
                    value_size: ffi::bpf_map__value_size(map) as usize,
                },
            )
        };
        maps.insert(name, shape);
    }
    for &(name, key_size, value_size) in LAYOUT {
        let shape = maps.get(name).ok_or_else(|| BpfError::NoSuch {
            kind: "map",
            name: name.to_owned(),
        })?;
        if (shape.key_size, shape.value_size) != (key_size, value_size) {
            return Err(BpfError::Layout {
                map: name.to_owned(),
                key_size: u32::try_from(shape.key_size).unwrap_or(u32::MAX),
                value_size: u32::try_from(shape.value_size).unwrap_or(u32::MAX),
            });
        }
    }
    Ok(maps)
}

fn programs_of(object: &Object, home: Option<&Path>) -> Result<BTreeMap<String, RawFd>, BpfError> {
    let mut programs = BTreeMap::new();
    let mut program = ptr::null_mut();
    loop {
        // SAFETY: the object is open; null asks for the first program.
        program = unsafe { ffi::bpf_object__next_program(object.0.as_ptr(), program) };
        if program.is_null() {
            return Ok(programs);
        }
        // SAFETY: the program belongs to the open, loaded object.
        let (name, fd) = unsafe {
            (
                owned(ffi::bpf_program__name(program)),
                ffi::bpf_program__fd(program),
            )
        };
        if let Some(home) = home {
            pin_program(program, home.join("programs").join(&name))?;
        }
        programs.insert(name, fd);
    }
}

fn pin_program(program: *mut ffi::Program, path: PathBuf) -> Result<(), BpfError> {
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(BpfError::Pin { path, source });
        }
        _ => {}
    }
    let text = c_path(&path)?;
    // SAFETY: the program belongs to an open, loaded object.
    if unsafe { ffi::bpf_program__pin(program, text.as_ptr()) } != 0 {
        let source = io::Error::last_os_error();
        return Err(BpfError::Pin { path, source });
    }
    Ok(())
}

fn whole(map: &str, what: &'static str, found: usize, size: usize) -> Result<(), BpfError> {
    if size != 0 && found.is_multiple_of(size) {
        return Ok(());
    }
    Err(BpfError::Size {
        map: map.to_owned(),
        what,
        found,
        size,
    })
}

fn sum(bytes: &[u8]) -> u64 {
    let cells = bytes.chunks_exact(8);
    cells
        .map(|cell| u64::from_ne_bytes(cell.try_into().expect("chunks of eight")))
        .fold(0, u64::wrapping_add)
}

fn update_error(map: &str) -> BpfError {
    let source = io::Error::last_os_error();
    match source.raw_os_error() {
        Some(code) if FULL.contains(&code) => BpfError::Full {
            map: map.to_owned(),
        },
        _ => BpfError::system(format!("write map {map}"), source),
    }
}

fn attach_error(program: &str, ifindex: i32, code: c_int) -> BpfError {
    let said = log::take();
    BpfError::system(
        format!("attach {program} to interface {ifindex} ({})", said.trim()),
        io::Error::from_raw_os_error(-code),
    )
}

fn tc_hook(ifindex: i32, hook: Hook) -> ffi::TcHook {
    ffi::TcHook {
        size: size_of::<ffi::TcHook>(),
        ifindex,
        attach_point: hook.attach_point(),
        parent: 0,
        pad: 0,
    }
}

fn tc_options(program_fd: RawFd, flags: u32, priority: u32) -> ffi::TcOptions {
    ffi::TcOptions {
        size: size_of::<ffi::TcOptions>(),
        program_fd,
        flags,
        program_id: 0,
        handle: 1,
        priority,
        pad: 0,
    }
}

/// Take away what stands at a tc hook under `priority`; nothing there is fine.
pub(crate) fn detach_tc(ifindex: c_int, hook: Hook, priority: u32) -> Result<(), BpfError> {
    let at = tc_hook(ifindex, hook);
    let options = tc_options(0, 0, priority);
    log::begin();
    // SAFETY: the structures are whole and ours.
    let failed = unsafe { ffi::bpf_tc_detach(&raw const at, &raw const options) };
    match failed {
        0 => Ok(()),
        error if NOTHING_THERE.contains(&error) => Ok(()),
        error => Err(attach_error("nothing", ifindex, error)),
    }
}

/// Return the kernel's number of the program at a tc hook under `priority`.
pub(crate) fn tc_program(
    ifindex: c_int,
    hook: Hook,
    priority: u32,
) -> Result<Option<u32>, BpfError> {
    let at = tc_hook(ifindex, hook);
    let mut options = tc_options(0, 0, priority);
    // SAFETY: the structures are whole and ours.
    match unsafe { ffi::bpf_tc_query(&raw const at, &raw mut options) } {
        0 => Ok(Some(options.program_id)),
        error if NOTHING_THERE.contains(&error) => Ok(None),
        error => Err(query_error(ifindex, error)),
    }
}

pub(crate) fn detach_xdp(ifindex: c_int) -> Result<(), BpfError> {
    log::begin();
    // SAFETY: numbers only.
    let codes = XDP_MODES
        .map(|flags| unsafe { ffi::bpf_xdp_detach(ifindex, flags.cast_unsigned(), ptr::null()) });
    // A driver that knows no XDP refuses the first; what has neither mode is gone.
    match codes {
        [_, 0] | [0, _] => Ok(()),
        [_, error] => Err(attach_error("nothing", ifindex, error)),
    }
}

/// Return the kernel's numbers of the XDP programs on an interface.
pub(crate) fn xdp_programs(ifindex: c_int) -> Result<Vec<u32>, BpfError> {
    let mut found = Vec::new();
    for flags in XDP_MODES {
        let mut number = 0;
        // SAFETY: libbpf writes one number.
        match unsafe { ffi::bpf_xdp_query_id(ifindex, flags, &raw mut number) } {
            0 if number != 0 => found.push(number),
            0 => {}
            error if error == -E_NODEV => {}
            error => return Err(query_error(ifindex, error)),
        }
    }
    Ok(found)
}

fn query_error(ifindex: c_int, code: c_int) -> BpfError {
    BpfError::system(
        format!("ask what hangs at interface {ifindex}"),
        io::Error::from_raw_os_error(-code),
    )
}
