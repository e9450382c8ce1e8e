//! Compiles `bpf/plane.bpf.c` for the kernel and finds libbpf.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bpf");
    println!("cargo:rerun-if-changed={}", sources.display());
    compile(&sources.join("plane.bpf.c"), &sources);
    link();
}

fn compile(source: &Path, include: &Path) {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let object = out.join("plane.bpf.o");
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let mut command = Command::new(&clang);
    command
        .args(["-target", "bpf", "-O2", "-g", "-Wall", "-Wextra", "-Werror"])
        .arg("-Wno-unused-parameter")
        // Debian keeps <asm/types.h> below the machine's own triple, which -target bpf hides.
        .arg(format!("-I/usr/include/{}-linux-gnu", env::consts::ARCH))
        .arg("-I")
        .arg(include)
        .arg("-c")
        .arg(source)
        .arg("-o")
        .arg(&object);
    let status = command
        .status()
        .unwrap_or_else(|error| panic!("{clang} is needed to compile eBPF programs: {error}"));
    assert!(status.success(), "{clang} refused {}", source.display());
}

fn link() {
    let found = Command::new("pkg-config")
        .args(["--libs-only-L", "libbpf"])
        .output();
    if let Ok(output) = found {
        for word in String::from_utf8_lossy(&output.stdout).split_whitespace() {
            if let Some(directory) = word.strip_prefix("-L") {
                println!("cargo:rustc-link-search=native={directory}");
            }
        }
    }
    println!("cargo:rustc-link-lib=dylib=bpf");
}
