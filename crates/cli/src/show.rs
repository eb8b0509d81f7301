//! What a person or a program sees of a run: bars on a terminal, one line an epoch otherwise, JSON on request.

use crate::failure::{Failure, say};
use deepcluster_proto::v1::{Event, RunProgress};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use serde_json::Value;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// The phase that the bar shows, and where it stood when it was first heard of: rates count from there, since a bar that
/// joins a phase half-way would otherwise take the first half for the work of an instant.
struct Phase {
    name: String,
    since: Instant,
    done_then: u64,
}

impl Phase {
    fn new(name: String, done: u64) -> Self {
        Self { name, since: Instant::now(), done_then: done }
    }

    /// "41 /s, 12 seconds left"; empty while too little has happened to tell.
    fn rate(&self, done: u64, total: u64) -> String {
        let seconds = self.since.elapsed().as_secs_f64();
        let rate = done.saturating_sub(self.done_then) as f64 / seconds;
        if seconds < 0.5 || rate <= 0.0 {
            return String::new();
        }
        let left = Duration::from_secs_f64(total.saturating_sub(done) as f64 / rate);
        format!("{rate:.1}/s, {} left", HumanDuration(left))
    }
}

/// What a new run consists of: its images, clusters, and the options that were chosen for it, each with its reason.
fn creation_lines(event: &Value) -> String {
    let clusters = match text(&event["spec"], "clustering") == "pic" {
        true => "as many clusters as power iteration finds".to_owned(),
        false => format!("k = {}", event["k"]),
    };
    let mut lines = vec![match event["skipped"].as_u64() {
        Some(0) | None => format!("{} images, 0 unreadable; {clusters}", event["images"]),
        Some(n) => format!("{} images, {n} unreadable by their headers alone; {clusters}", event["images"]),
    }];
    let said = [text(event, "passed_over"), text(event, "classes_note"), text(event, "init_note")];
    lines.extend(said.into_iter().filter(|sentence| !sentence.is_empty()).map(str::to_owned));
    for choice in event["auto"].as_array().into_iter().flatten() {
        lines.push(format!("--{} {} (auto): {}", text(choice, "option"), text(choice, "value"), text(choice, "reason")));
    }
    lines.join("\n")
}

/// Shows events and progress.
pub struct Show {
    json: bool,
    bar: Option<ProgressBar>,
    phase: Phase,
    first_epoch: Option<Value>,
    last_epoch: Option<Value>,
}

impl Show {
    /// JSON lines on standard output, or lines for people with a bar when standard error is a terminal.
    pub fn new(json: bool) -> Self {
        let bar =
            (!json && std::io::stderr().is_terminal()).then(|| ProgressBar::new(0).with_style(ProgressStyle::default_spinner()));
        Self { json, bar, phase: Phase::new(String::new(), 0), first_epoch: None, last_epoch: None }
    }

    /// Shows an event.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn event(&mut self, event: &Event) -> Result<(), Failure> {
        if self.json {
            return say(&event.json);
        }
        let Ok(value) = serde_json::from_str::<Value>(&event.json) else { return Ok(()) };
        let line = match event.kind.as_str() {
            "epoch" => {
                self.first_epoch.get_or_insert_with(|| value.clone());
                self.last_epoch = Some(value.clone());
                epoch_line(&value)
            }
            "run" if value.get("k").is_some() => creation_lines(&value),
            "run" if text(&value, "state") == "paused" && !text(&value, "message").is_empty() => {
                format!("run paused: {}", text(&value, "message"))
            }
            "run" => format!("run {}", text(&value, "state")),
            "warning" => format!("warning: {}; {}", text(&value, "message"), text(&value, "remedy")),
            "images" if value.get("unread_in_training").is_some() => {
                format!("{} images could not be read in training, as {}", value["unread_in_training"], text(&value, "example"))
            }
            "images" if !text(&value, "message").is_empty() => text(&value, "message").to_owned(),
            "images" => images_line(&value),
            "fault" => format!("{}: {}; trying again", text(&value, "worker"), text(&value, "message")),
            _ => return Ok(()),
        };
        match &self.bar {
            Some(bar) => bar.suspend(|| say(line)),
            None => say(line),
        }
    }

    /// Says on standard error what is no event of the run.
    pub fn notice(&self, sentence: &str) {
        let tell = || eprintln!("deepcluster: {sentence}");
        match &self.bar {
            Some(bar) => bar.suspend(tell),
            None => tell(),
        }
    }

    /// What the run scored, from its first epoch to its last, in one line; nothing in JSON mode.
    pub fn summary(&self) -> Option<String> {
        let (first, last) = (self.first_epoch.as_ref()?, self.last_epoch.as_ref()?);
        let both = |name: &str, label: &str| {
            let (from, to) = (first[name].as_f64()?, last[name].as_f64()?);
            Some(format!("{label} {from:.3} -> {to:.3}"))
        };
        let scores = [both("loss", "loss"), both("nmi_classes", "NMI with the folders"), both("ami_classes", "AMI")];
        let scores: Vec<String> = scores.into_iter().flatten().collect();
        Some(format!("epochs {} to {}: {}", first["epoch"], last["epoch"], scores.join(", ")))
    }

    /// Shows how far a phase has come, with rate and time left.
    pub fn progress(&mut self, progress: &RunProgress) {
        let (Some(bar), Some(inner)) = (&self.bar, &progress.progress) else { return };
        let name = format!("epoch {} {} {}", progress.epoch, progress.phase, inner.phase);
        if name != self.phase.name {
            bar.reset();
            self.phase = Phase::new(name, inner.done);
        }
        let template = if inner.total > 0 { "{msg:32} [{bar:30}] {pos}/{len}  {prefix}" } else { "{msg:32} {spinner} {elapsed}" };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_length(inner.total);
        bar.set_position(inner.done);
        bar.set_prefix(self.phase.rate(inner.done, inner.total));
        let loss = if inner.loss > 0.0 { format!("  loss {:.3}", inner.loss) } else { String::new() };
        bar.set_message(format!("{}{loss}", self.phase.name));
    }
}

impl Drop for Show {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What became known of images when they were read.
fn images_line(value: &Value) -> String {
    let mut parts = Vec::new();
    if let Some(n) = value["skipped_in_all"].as_u64().filter(|n| *n > 0) {
        parts.push(format!("{n} images cannot be read in all, as {}", text(value, "example")));
    }
    if let Some(n) = value["remarks_in_all"].as_u64().filter(|n| *n > 0) {
        parts.push(format!("{n} are read with a remark, as {}", text(value, "remark_example")));
    }
    match parts.is_empty() {
        true => "all images can be read now".to_owned(),
        false => format!("{}; images.csv has them all", parts.join("; ")),
    }
}

fn epoch_line(value: &Value) -> String {
    let score = |name: &str| value[name].as_f64().map_or("-".to_owned(), |score| format!("{score:.3}"));
    let seconds = |name: &str| value[name].as_f64().map_or("-".to_owned(), |seconds| format!("{seconds:.1} s"));
    format!(
        "epoch {:>3}  loss {}  clusters {} (largest {:.1} %)  NMI last {} classes {} (chance {})  extract {} cluster {} train {}",
        value["epoch"],
        score("loss"),
        value["nonempty"],
        value["largest_share"].as_f64().unwrap_or_default() * 100.0,
        score("nmi_last"),
        score("nmi_classes"),
        score("nmi_chance"),
        seconds("extract_s"),
        seconds("cluster_s"),
        seconds("train_s"),
    )
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}
