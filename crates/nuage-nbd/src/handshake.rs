//! The handshake: options until an export is chosen.

use crate::server::{Export, ExportId};
use crate::wire::{
    CONTEXT, CONTEXT_ID, FIXED_NEWSTYLE, IHAVEOPT, MAGIC, NO_ZEROES, OPTION_BYTES, OPTION_REPLY,
    be16, be32, be64, flag, info, length_u32, option, option_reply,
};
use nuage_block::Output;
use std::collections::BTreeMap;

/// Longest option we read; names have at most 4096 bytes, a list of contexts a few of them.
const OPTION_BYTES_MAX: usize = 32 * 1024;
/// Options of one connection.
const OPTIONS_MAX: u32 = 64;
/// Largest payload we announce and accept: what every client may assume.
pub(crate) const PAYLOAD_BYTES_MAX: u32 = 32 * 1024 * 1024;

#[derive(Debug)]
enum State {
    ClientFlags,
    Option,
}

/// What the handshake came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    More,
    Close,
    Go {
        export: ExportId,
        structured: bool,
        context: bool,
    },
}

#[derive(Debug)]
pub(crate) struct Handshake {
    state: State,
    buffer: Vec<u8>,
    options: u32,
    no_zeroes: bool,
    structured: bool,
    /// Export for which `base:allocation` was negotiated.
    context: Option<String>,
}

type Exports = BTreeMap<ExportId, Export>;

/// Transmission flags of an export.
fn flags(export: &Export) -> u16 {
    let mut flags = flag::HAS_FLAGS | flag::FLUSH | flag::FUA | flag::CACHE;
    if export.geometry.read_only {
        flags |= flag::READ_ONLY;
    } else {
        flags |= flag::TRIM | flag::WRITE_ZEROES | flag::FAST_ZERO;
    }
    if export.multi_conn || export.geometry.read_only {
        flags |= flag::MULTI_CONN;
    }
    flags
}

impl Handshake {
    pub fn begin(output: &mut Output) -> Self {
        output.copy(&MAGIC.to_be_bytes());
        output.copy(&IHAVEOPT.to_be_bytes());
        output.copy(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
        Self {
            state: State::ClientFlags,
            buffer: Vec::new(),
            options: 0,
            no_zeroes: false,
            structured: false,
            context: None,
        }
    }

    /// Take bytes until one option is complete.
    pub fn receive(
        &mut self,
        input: &mut &[u8],
        exports: &Exports,
        output: &mut Output,
    ) -> Result<Step, &'static str> {
        let wanted = match self.state {
            State::ClientFlags => 4,
            State::Option if self.buffer.len() < OPTION_BYTES => OPTION_BYTES,
            State::Option => OPTION_BYTES + self.option_bytes()?,
        };
        let count = input.len().min(wanted - self.buffer.len());
        let (taken, rest) = input.split_at(count);
        self.buffer.extend_from_slice(taken);
        *input = rest;
        if self.buffer.len() < wanted {
            return Ok(Step::More);
        }
        match self.state {
            State::ClientFlags => {
                let flags = be32(&self.buffer, 0);
                if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 {
                    return Err("unknown client flags");
                }
                if flags & u32::from(FIXED_NEWSTYLE) == 0 {
                    return Err("the client does not speak fixed newstyle");
                }
                self.no_zeroes = flags & u32::from(NO_ZEROES) != 0;
                self.state = State::Option;
                self.buffer.clear();
                Ok(Step::More)
            }
            State::Option if self.buffer.len() == OPTION_BYTES && self.option_bytes()? > 0 => {
                Ok(Step::More)
            }
            State::Option => {
                let buffer = std::mem::take(&mut self.buffer);
                self.option(be32(&buffer, 8), &buffer[OPTION_BYTES..], exports, output)
            }
        }
    }

    fn option_bytes(&self) -> Result<usize, &'static str> {
        if be64(&self.buffer, 0) != IHAVEOPT {
            return Err("an option without its magic");
        }
        let length = be32(&self.buffer, 12) as usize;
        if length > OPTION_BYTES_MAX {
            return Err("an option that is too long");
        }
        Ok(length)
    }

    fn option(
        &mut self,
        code: u32,
        data: &[u8],
        exports: &Exports,
        output: &mut Output,
    ) -> Result<Step, &'static str> {
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Err("too many options");
        }
        match code {
            option::ABORT => {
                reply(output, code, option_reply::ACK, &[]);
                return Ok(Step::Close);
            }
            option::EXPORT_NAME => return self.export_name(data, exports, output),
            option::LIST if data.is_empty() => {
                for export in exports.values() {
                    let mut body = length_u32(export.name.as_bytes()).to_vec();
                    body.extend_from_slice(export.name.as_bytes());
                    reply(output, code, option_reply::SERVER, &body);
                }
                reply(output, code, option_reply::ACK, &[]);
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                reply(output, code, option_reply::ACK, &[]);
            }
            option::INFO | option::GO => return Ok(self.info(code, data, exports, output)),
            option::LIST_META | option::SET_META => self.meta(code, data, exports, output),
            option::LIST | option::STRUCTURED_REPLY => {
                reply(
                    output,
                    code,
                    option_reply::INVALID,
                    b"this option has no data",
                );
            }
            _ => reply(output, code, option_reply::UNSUPPORTED, &[]),
        }
        Ok(Step::More)
    }

    fn go(&self, id: ExportId, export: &Export) -> Step {
        let context = self.structured && self.context.as_ref() == Some(&export.name);
        Step::Go {
            export: id,
            structured: self.structured,
            context,
        }
    }

    fn export_name(
        &self,
        data: &[u8],
        exports: &Exports,
        output: &mut Output,
    ) -> Result<Step, &'static str> {
        let (id, export) = find(exports, data).ok_or("no such export")?;
        output.copy(&export.geometry.size_bytes.to_be_bytes());
        output.copy(&flags(export).to_be_bytes());
        if !self.no_zeroes {
            output.copy(&[0; 124]);
        }
        Ok(self.go(id, export))
    }

    fn info(&mut self, code: u32, data: &[u8], exports: &Exports, output: &mut Output) -> Step {
        let Some((name, wanted)) = parse_info(data) else {
            reply(output, code, option_reply::INVALID, b"malformed option");
            return Step::More;
        };
        let Some((id, export)) = find(exports, name) else {
            reply(output, code, option_reply::UNKNOWN, b"no such export");
            return Step::More;
        };
        let mut body = info::EXPORT.to_be_bytes().to_vec();
        body.extend_from_slice(&export.geometry.size_bytes.to_be_bytes());
        body.extend_from_slice(&flags(export).to_be_bytes());
        reply(output, code, option_reply::INFO, &body);
        for kind in wanted {
            let mut body = kind.to_be_bytes().to_vec();
            match kind {
                info::NAME => body.extend_from_slice(export.name.as_bytes()),
                info::DESCRIPTION => body.extend_from_slice(export.geometry.name.as_bytes()),
                info::BLOCK_SIZE => {
                    let smallest = export.geometry.logical_block_bytes;
                    for value in [smallest, 4096, PAYLOAD_BYTES_MAX] {
                        body.extend_from_slice(&value.to_be_bytes());
                    }
                }
                _ => continue,
            }
            reply(output, code, option_reply::INFO, &body);
        }
        reply(output, code, option_reply::ACK, &[]);
        if code == option::GO {
            self.go(id, export)
        } else {
            Step::More
        }
    }

    fn meta(&mut self, code: u32, data: &[u8], exports: &Exports, output: &mut Output) {
        let Some((name, queries)) = parse_meta(data) else {
            return reply(output, code, option_reply::INVALID, b"malformed option");
        };
        if !self.structured {
            return reply(
                output,
                code,
                option_reply::INVALID,
                b"structured replies first",
            );
        }
        let Some((_, export)) = find(exports, name) else {
            return reply(output, code, option_reply::UNKNOWN, b"no such export");
        };
        let lists = code == option::LIST_META;
        let matches = queries
            .iter()
            .any(|query| *query == CONTEXT.as_bytes() || lists && *query == b"base:")
            || lists && queries.is_empty();
        if !lists {
            self.context = matches.then(|| export.name.clone());
        }
        if matches {
            let id = if lists { 0 } else { CONTEXT_ID };
            let mut body = id.to_be_bytes().to_vec();
            body.extend_from_slice(CONTEXT.as_bytes());
            reply(output, code, option_reply::META, &body);
        }
        reply(output, code, option_reply::ACK, &[]);
    }
}

/// The export of a name; the empty name is the only export, if there is only one.
fn find<'a>(exports: &'a Exports, name: &[u8]) -> Option<(ExportId, &'a Export)> {
    let found = |(id, export): (&ExportId, &'a Export)| (*id, export);
    if name.is_empty() && exports.len() == 1 {
        return exports.iter().next().map(found);
    }
    exports
        .iter()
        .find(|(_, export)| export.name.as_bytes() == name)
        .map(found)
}

fn reply(output: &mut Output, code: u32, kind: u32, body: &[u8]) {
    output.copy(&OPTION_REPLY.to_be_bytes());
    output.copy(&code.to_be_bytes());
    output.copy(&kind.to_be_bytes());
    output.copy(&length_u32(body));
    output.copy(body);
}

fn take<'a>(data: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = data.split_at_checked(count)?;
    *data = rest;
    Some(taken)
}

fn parse_info(mut data: &[u8]) -> Option<(&[u8], Vec<u16>)> {
    let length = be32(take(&mut data, 4)?, 0) as usize;
    let name = take(&mut data, length)?;
    let count = usize::from(be16(take(&mut data, 2)?, 0));
    let wanted = take(&mut data, count * 2)?;
    if !data.is_empty() {
        return None;
    }
    Some((
        name,
        wanted.chunks_exact(2).map(|pair| be16(pair, 0)).collect(),
    ))
}

fn parse_meta(mut data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let length = be32(take(&mut data, 4)?, 0) as usize;
    let name = take(&mut data, length)?;
    let count = be32(take(&mut data, 4)?, 0);
    let mut queries = Vec::new();
    for _ in 0..count {
        let length = be32(take(&mut data, 4)?, 0) as usize;
        queries.push(take(&mut data, length)?);
    }
    data.is_empty().then_some((name, queries))
}
