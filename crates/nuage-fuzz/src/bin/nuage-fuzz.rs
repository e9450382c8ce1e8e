//! libFuzzer's program: `NUAGE_FUZZ_TARGET` names the target; `NUAGE_FUZZ_SEEDS` a folder to write its seeds to, and
//! nothing else is done then.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nuage_fuzz::{TARGETS, Target};
use std::sync::OnceLock;

static TARGET: OnceLock<&Target> = OnceLock::new();

fn begin() {
    let name = std::env::var("NUAGE_FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|target| target.name == name);
    let target = found.expect("NUAGE_FUZZ_TARGET is the name of a target");
    if let Some(folder) = std::env::var_os("NUAGE_FUZZ_SEEDS") {
        let folder = std::path::PathBuf::from(folder);
        for (number, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number:02}")), seed)
                .expect("the folder takes files");
        }
        std::process::exit(0);
    }
    TARGET.get_or_init(|| target);
}

fuzz_target!(init: begin(), |data: &[u8]| {
    let target = TARGET.get().expect("set at the start");
    (target.run)(data);
});
