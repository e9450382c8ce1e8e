//! The part of libbpf 1.x that we call (`/usr/include/bpf/{libbpf,bpf}.h`).

use std::ffi::{c_char, c_int, c_void};

#[repr(C)]
pub struct Object {
    _opaque: [u8; 0],
}

#[repr(C)]
pub struct Map {
    _opaque: [u8; 0],
}

#[repr(C)]
pub struct Program {
    _opaque: [u8; 0],
}

#[repr(C)]
pub struct RingBuffer {
    _opaque: [u8; 0],
}

/// The head of `struct bpf_object_open_opts`; `size` tells libbpf how much of it there is.
#[repr(C)]
pub struct OpenOptions {
    pub size: usize,
    pub object_name: *const c_char,
}

pub const TC_INGRESS: c_int = 1;
pub const TC_EGRESS: c_int = 2;
pub const TC_REPLACE: u32 = 1;

/// `struct bpf_tc_hook`
#[repr(C)]
pub struct TcHook {
    pub size: usize,
    pub ifindex: c_int,
    pub attach_point: c_int,
    pub parent: u32,
    pub pad: u32,
}

/// `struct bpf_tc_opts`
#[repr(C)]
pub struct TcOptions {
    pub size: usize,
    pub program_fd: c_int,
    pub flags: u32,
    pub program_id: u32,
    pub handle: u32,
    pub priority: u32,
    pub pad: u32,
}

const _: () = assert!(size_of::<TcHook>() == 24 && size_of::<TcOptions>() == 32);

pub type PrintFunction =
    unsafe extern "C" fn(level: c_int, format: *const c_char, arguments: *mut c_void) -> c_int;
pub type SampleFunction =
    unsafe extern "C" fn(context: *mut c_void, data: *mut c_void, size: usize) -> c_int;

pub const MAP_LRU_HASH: c_int = 9;
pub const ANY: u64 = 0;

unsafe extern "C" {
    pub fn libbpf_set_print(function: Option<PrintFunction>) -> Option<PrintFunction>;
    pub fn bpf_object__open_mem(
        data: *const c_void,
        size: usize,
        options: *const OpenOptions,
    ) -> *mut Object;
    pub fn bpf_object__load(object: *mut Object) -> c_int;
    pub fn bpf_object__close(object: *mut Object);
    pub fn bpf_object__next_map(object: *const Object, map: *const Map) -> *mut Map;
    pub fn bpf_object__next_program(object: *const Object, program: *mut Program) -> *mut Program;
    pub fn bpf_map__name(map: *const Map) -> *const c_char;
    pub fn bpf_map__fd(map: *const Map) -> c_int;
    pub fn bpf_map__type(map: *const Map) -> c_int;
    pub fn bpf_map__key_size(map: *const Map) -> u32;
    pub fn bpf_map__value_size(map: *const Map) -> u32;
    pub fn bpf_map__set_pin_path(map: *mut Map, path: *const c_char) -> c_int;
    pub fn bpf_program__name(program: *const Program) -> *const c_char;
    pub fn bpf_program__fd(program: *const Program) -> c_int;
    pub fn bpf_program__pin(program: *mut Program, path: *const c_char) -> c_int;
    pub fn bpf_map_update_elem(
        fd: c_int,
        key: *const c_void,
        value: *const c_void,
        flags: u64,
    ) -> c_int;
    pub fn bpf_map_lookup_elem(fd: c_int, key: *const c_void, value: *mut c_void) -> c_int;
    pub fn bpf_map_delete_elem(fd: c_int, key: *const c_void) -> c_int;
    pub fn bpf_map_get_next_key(fd: c_int, key: *const c_void, next: *mut c_void) -> c_int;
    pub fn bpf_map_create(
        kind: c_int,
        name: *const c_char,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        options: *const c_void,
    ) -> c_int;
    pub fn bpf_tc_hook_create(hook: *mut TcHook) -> c_int;
    pub fn bpf_tc_attach(hook: *const TcHook, options: *mut TcOptions) -> c_int;
    pub fn bpf_tc_detach(hook: *const TcHook, options: *const TcOptions) -> c_int;
    pub fn bpf_tc_query(hook: *const TcHook, options: *mut TcOptions) -> c_int;
    pub fn bpf_xdp_query_id(ifindex: c_int, flags: c_int, program_id: *mut u32) -> c_int;
    pub fn bpf_obj_get(path: *const c_char) -> c_int;
    pub fn bpf_obj_get_info_by_fd(fd: c_int, info: *mut c_void, size: *mut u32) -> c_int;
    pub fn bpf_xdp_attach(ifindex: c_int, fd: c_int, flags: u32, options: *const c_void) -> c_int;
    pub fn bpf_xdp_detach(ifindex: c_int, flags: u32, options: *const c_void) -> c_int;
    pub fn libbpf_num_possible_cpus() -> c_int;
    pub fn ring_buffer__new(
        fd: c_int,
        sample: SampleFunction,
        context: *mut c_void,
        options: *const c_void,
    ) -> *mut RingBuffer;
    pub fn ring_buffer__free(ring: *mut RingBuffer);
    pub fn ring_buffer__consume(ring: *mut RingBuffer) -> c_int;
    pub fn ring_buffer__epoll_fd(ring: *const RingBuffer) -> c_int;
}

/// glibc's `struct if_nameindex`
#[repr(C)]
pub struct NameIndex {
    pub index: u32,
    pub name: *mut c_char,
}

unsafe extern "C" {
    pub fn if_nameindex() -> *mut NameIndex;
    pub fn if_freenameindex(list: *mut NameIndex);
    /// glibc's, for libbpf's log: its arguments come as a `va_list`, a pointer on our machines.
    pub fn vsnprintf(
        buffer: *mut c_char,
        size: usize,
        format: *const c_char,
        arguments: *mut c_void,
    ) -> c_int;
}
