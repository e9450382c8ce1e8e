//! How our processes begin and end, as whoever starts them sees it.

use crate::log;
use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

/// Print what was asked for instead of serving.
pub fn say(text: &str) -> ExitCode {
    match writeln!(io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Tell that the command line is wrong.
pub fn refused(error: &str) -> ExitCode {
    log::error("command_line", &[("error", error.to_owned().into())]);
    ExitCode::from(2)
}

/// Tell how serving ended.
pub fn ended(outcome: io::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => {
            log::info("stopped", &[]);
            ExitCode::SUCCESS
        }
        Err(error) => {
            log::error("failed", &[("error", error.to_string().into())]);
            ExitCode::FAILURE
        }
    }
}

/// What becomes readable when somebody asks the process to end (SIGTERM, SIGINT).
///
/// # Errors
///
/// The kernel gives no pair of sockets, or no handler.
pub fn signals() -> io::Result<UnixStream> {
    let (signals, rings) = UnixStream::pair()?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::low_level::pipe::register(signal, rings.try_clone()?)?;
    }
    Ok(signals)
}
