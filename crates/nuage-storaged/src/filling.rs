//! Fillings from images: chunks in, writes out, one answer at the end.

use crate::control::{Code, Refusal};
use crate::daemon::{Asker, Handled, Pending, Storaged, reply};
use crate::fill::{Chunk, Fill};
use nuage_block::{Operation, Outcome};
use nuage_io::serve::Context;
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

impl Storaged {
    pub(crate) fn fill(&mut self, volume: &str, path: &str, asker: &Asker) -> Handled {
        self.head(volume)?;
        if self.fills.values().any(|fill| fill.volume == volume) {
            return Err(Refusal::new(
                Code::Conflict,
                "the volume is being filled already",
            ));
        }
        let limit = self.catalogue.get(volume)?.size_bytes;
        let fill = Fill::start(
            asker.0,
            asker.1.clone(),
            volume,
            Path::new(path),
            limit,
            Arc::clone(&self.wake),
        )
        .map_err(|error| Refusal::new(Code::InvalidRequest, format!("{path}: {error}")))?;
        let job = self.next_token;
        self.next_token += 1;
        self.fills.insert(job, fill);
        Ok(None)
    }

    pub(crate) fn run_fills(&mut self, context: &mut Context<'_>) {
        let jobs: Vec<u64> = self.fills.keys().copied().collect();
        for job in jobs {
            self.run_fill(job, context);
        }
    }

    pub(crate) fn run_fill(&mut self, job: u64, context: &mut Context<'_>) {
        loop {
            let Some(fill) = self.fills.get_mut(&job) else {
                return;
            };
            let id = self
                .heads
                .get(&fill.volume)
                .filter(|head| !head.closing)
                .map(|head| head.id);
            let Some(chunk) = fill.next() else { break };
            let (operation, bytes) = match chunk {
                Chunk::Data { offset, data } => {
                    let bytes = data.len() as u64;
                    (
                        Operation::Write {
                            offset,
                            data,
                            fua: false,
                        },
                        bytes,
                    )
                }
                Chunk::Zeros { offset, length } => (Operation::Unmap { offset, length }, length),
                Chunk::Failed(message) => {
                    fill.failure = Some(message);
                    continue;
                }
            };
            let Some(id) = id else {
                fill.failure = Some("the head was closed".to_owned());
                continue;
            };
            fill.in_flight += 1;
            let token = self.remember(Pending::Fill { job, bytes });
            context.doors.ask(id, token, operation);
        }
        self.end_fill(job, context);
    }

    pub(crate) fn end_fill(&mut self, job: u64, context: &mut Context<'_>) {
        let Some(fill) = self.fills.get_mut(&job) else {
            return;
        };
        if !fill.ended || fill.in_flight > 0 || fill.flushing {
            return;
        }
        let asker = (fill.client, fill.id.clone());
        if let Some(message) = fill.failure.take() {
            self.fills.remove(&job);
            return reply(context, &asker, Err(Refusal::new(Code::Io, message)));
        }
        fill.flushing = true;
        if let Some(id) = self.heads.get(&fill.volume).map(|head| head.id) {
            let token = self.remember(Pending::FillFlush { job });
            context.doors.ask(id, token, Operation::Flush);
        }
    }

    pub(crate) fn filled(
        &mut self,
        job: u64,
        bytes: u64,
        outcome: &Outcome,
        context: &mut Context<'_>,
    ) {
        if let Some(fill) = self.fills.get_mut(&job) {
            fill.in_flight -= 1;
            fill.done_bytes += bytes;
            if let Outcome::Failed(failure) = outcome {
                fill.failure = Some(failure.to_string());
            }
            if fill.tells() {
                let line = json!({
                    "id": fill.id,
                    "progress": {"done_bytes": fill.done_bytes, "total_bytes": fill.total_bytes},
                });
                context
                    .replies
                    .push((fill.client, line.to_string().into_bytes()));
            }
        }
        self.run_fill(job, context);
    }
}
