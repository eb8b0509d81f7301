//! `events.jsonl`: what happened in a run, one JSON object a line, numbered from 0.

use crate::crash::step;
use crate::publish::{parent, publish_bytes, sync_folder};
use crate::{VolumeError, lock};
use serde_json::{Map, Value, json};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// One line of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its number, from 0 without gaps.
    pub number: u64,
    /// What kind of thing happened: "run", "images", "phase", "epoch", "fault".
    pub kind: String,
    /// The line, without its end.
    pub json: String,
}

/// How much an event should worry whoever reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// As it should be.
    Info,
    /// Something went wrong and was survived, or will if nothing is done.
    Warning,
    /// The run stopped because of it.
    Error,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// The open log of one run.
pub struct EventLog {
    path: PathBuf,
    file: File,
    /// Length of the whole lines in it.
    bytes: u64,
    next: u64,
}

impl EventLog {
    /// Opens a run's log, or starts it, and returns what is in it. A last line that a crash tore apart is cut off.
    ///
    /// # Errors
    /// When it cannot be read or written, or a line in its middle is no event.
    pub fn open(path: &Path) -> Result<(Self, Vec<Event>), VolumeError> {
        let (events, bytes) = whole_lines(path)?;
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(VolumeError::io(path))?;
        sync_folder(parent(path))?;
        let mut log = Self { path: path.to_owned(), file, bytes, next: events.len() as u64 };
        log.cut_off()?;
        Ok((log, events))
    }

    /// Reads a run's log without touching it.
    ///
    /// # Errors
    /// As [`EventLog::open`]; when its last line is torn.
    pub fn read(path: &Path) -> Result<Vec<Event>, VolumeError> {
        let (events, bytes) = whole_lines(path)?;
        let found = fs::metadata(path).map_err(VolumeError::io(path))?.len();
        if found == bytes { Ok(events) } else { Err(VolumeError::corrupt(path, "its last line is torn")) }
    }

    /// Keeps of a damaged log the lines that are events, under their numbers. In place of the others stand events of the
    /// kind "lost", so that who watches from a number on misses nothing.
    ///
    /// # Errors
    /// When the log cannot be read or written.
    pub fn salvage(path: &Path) -> Result<(), VolumeError> {
        let text = match fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(VolumeError::io(path))?,
        };
        // A number may be what is damaged; no log has more events than lines, but for those of lines that ran together.
        let most = 2 * text.split(|byte| *byte == b'\n').count() as u64;
        let mut good = Vec::new();
        let mut next = 0;
        let mut events = text.split(|byte| *byte == b'\n').filter_map(any_event).peekable();
        while let Some(event) = events.next() {
            let overtakes = events.peek().is_some_and(|after| after.number <= event.number);
            if !(next..most).contains(&event.number) || overtakes {
                continue;
            }
            for number in next..event.number {
                let lost = json!({"event": "lost", "number": number, "time": 0, "severity": Severity::Warning.as_str()});
                good.extend_from_slice(format!("{lost}\n").as_bytes());
            }
            good.extend_from_slice(format!("{}\n", event.json).as_bytes());
            next = event.number + 1;
        }
        publish_bytes(path, &good).map(drop)
    }

    /// Adds a line durably. `body` must be an object; `event`, `number`, `time` and `severity` come before its members.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn append(&mut self, kind: &str, severity: Severity, body: Value) -> Result<Event, VolumeError> {
        let mut object = Map::new();
        object.insert("event".to_owned(), json!(kind));
        object.insert("number".to_owned(), json!(self.next));
        object.insert("time".to_owned(), json!(seconds_since_1970()));
        object.insert("severity".to_owned(), json!(severity.as_str()));
        if let Value::Object(members) = body {
            object.extend(members);
        }
        let json = Value::Object(object).to_string();
        step("appending", &self.path);
        lock::check(&self.path)?;
        // What an earlier append that failed may have left.
        self.cut_off()?;
        let line = format!("{json}\n");
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // Half a line in the middle would make the log unreadable; if it cannot go now, it goes before the next.
            let _ = self.cut_off();
            return Err(VolumeError::io(&self.path)(error));
        }
        step("appended", &self.path);
        self.bytes += line.len() as u64;
        let event = Event { number: self.next, kind: kind.to_owned(), json };
        self.next += 1;
        Ok(event)
    }

    fn cut_off(&mut self) -> Result<(), VolumeError> {
        let failed = |error| VolumeError::io(&self.path)(error);
        if self.file.metadata().map_err(failed)?.len() > self.bytes {
            self.file.set_len(self.bytes).map_err(failed)?;
        }
        Ok(())
    }
}

/// Now, to the millisecond.
pub fn seconds_since_1970() -> f64 {
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    millis as f64 / 1000.0
}

/// The events of a log, and the length of its whole lines.
fn whole_lines(path: &Path) -> Result<(Vec<Event>, u64), VolumeError> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        other => other.map_err(VolumeError::io(path))?,
    };
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let mut events = Vec::new();
    for line in text[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let number = events.len() as u64;
        let event = parse(line, number);
        events.push(event.ok_or_else(|| VolumeError::corrupt(path, format!("line {} is no event", number + 1)))?);
    }
    Ok((events, whole as u64))
}

fn parse(line: &[u8], number: u64) -> Option<Event> {
    any_event(line).filter(|event| event.number == number)
}

fn any_event(line: &[u8]) -> Option<Event> {
    let value: Value = serde_json::from_slice(line).ok()?;
    let number = value.get("number")?.as_u64()?;
    let kind = value.get("event")?.as_str()?.to_owned();
    Some(Event { number, kind, json: String::from_utf8(line.to_vec()).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_last_line_is_cut_off_and_numbering_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        let (mut log, events) = EventLog::open(&path).unwrap();
        assert!(events.is_empty());
        log.append("run", Severity::Info, json!({"state": "running"})).unwrap();
        let second = log.append("epoch", Severity::Warning, json!({"epoch": 0, "nmi_last": null})).unwrap();
        assert!(second.json.starts_with("{\"event\":\"epoch\",\"number\":1,\"time\":"));
        assert!(second.json.contains("\"severity\":\"warning\",\"epoch\":0"));
        log.file.write_all(b"{\"event\":\"epo").unwrap();
        drop(log);
        let (mut log, events) = EventLog::open(&path).unwrap();
        assert_eq!(events.len(), 2);
        assert_eq!(events[1], second);
        assert_eq!(log.append("run", Severity::Error, json!({})).unwrap().number, 2);
        // An append that failed half-way leaves as much.
        log.file.write_all(b"{\"event\":").unwrap();
        assert_eq!(log.append("run", Severity::Error, json!({})).unwrap().number, 3);
        assert_eq!(EventLog::open(&path).unwrap().1.len(), 4);
        // What somebody else did to its middle.
        let mut lines: Vec<String> = fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
        lines[1].truncate(9);
        publish_bytes(&path, lines.join("\n").as_bytes()).unwrap();
        assert!(EventLog::read(&path).unwrap_err().to_string().contains("line 2 is no event"));
        EventLog::salvage(&path).unwrap();
        let salvaged = EventLog::read(&path).unwrap();
        let kinds: Vec<_> = salvaged.iter().map(|event| event.kind.as_str()).collect();
        assert_eq!(kinds, ["run", "lost", "run", "run"]);
    }
}
