//! One line a fact on standard error, as text or JSON. Secrets never come here.

use serde_json::{Map, Value};
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

static AS_JSON: AtomicBool = AtomicBool::new(false);

/// Choose the form of the lines, once at the start.
pub fn use_json(json: bool) {
    AS_JSON.store(json, Ordering::Relaxed);
}

/// Write one line: a level, what happened, and its fields.
pub fn line(level: &str, event: &str, fields: &[(&str, Value)]) {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let mut text = Vec::new();
    if AS_JSON.load(Ordering::Relaxed) {
        let mut map = Map::new();
        map.insert("time".into(), since.as_secs_f64().into());
        map.insert("level".into(), level.into());
        map.insert("event".into(), event.into());
        for (key, value) in fields {
            map.insert((*key).to_owned(), value.clone());
        }
        text.extend_from_slice(Value::Object(map).to_string().as_bytes());
    } else {
        text.extend_from_slice(format!("{:.3} {level} {event}", since.as_secs_f64()).as_bytes());
        for (key, value) in fields {
            text.extend_from_slice(format!(" {key}={value}").as_bytes());
        }
    }
    text.push(b'\n');
    // Nobody can be told that standard error is gone.
    let _ = std::io::stderr().write_all(&text);
}

pub fn info(event: &str, fields: &[(&str, Value)]) {
    line("info", event, fields);
}

pub fn warn(event: &str, fields: &[(&str, Value)]) {
    line("warning", event, fields);
}

pub fn error(event: &str, fields: &[(&str, Value)]) {
    line("error", event, fields);
}
