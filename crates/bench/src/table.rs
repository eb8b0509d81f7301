//! The table of what was measured.

use std::fs;
use std::process::Command;

/// What a value should be.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

/// One measure.
pub(crate) struct Row {
    /// What was measured, with its unit or both sides of the ratio.
    pub(crate) measure: String,
    /// What came out.
    pub(crate) value: f64,
    /// What it should be; none for what only explains the others.
    pub(crate) goal: Option<Goal>,
}

impl Row {
    pub(crate) fn new(measure: impl Into<String>, value: f64, goal: Goal) -> Self {
        Self { measure: measure.into(), value, goal: Some(goal) }
    }

    /// A value without a goal.
    pub(crate) fn plain(measure: impl Into<String>, value: f64) -> Self {
        Self { measure: measure.into(), value, goal: None }
    }
}

/// Prints the rows as Markdown, under the machine that they were measured on.
pub(crate) fn print(rows: &[Row]) {
    println!("\n{}\n", machine());
    println!("| measure | value | goal | |\n|---|---|---|---|");
    for Row { measure, value, goal } in rows {
        let (goal, met) = match goal {
            Some(Goal::AtLeast(goal)) => (format!("≥ {goal}"), if value >= goal { "met" } else { "missed" }),
            Some(Goal::AtMost(goal)) => (format!("≤ {goal}"), if value <= goal { "met" } else { "missed" }),
            None => (String::new(), ""),
        };
        println!("| {measure} | {value:.3} | {goal} | {met} |");
    }
}

fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split(':').nth(1).unwrap_or_default().trim().to_owned()
    };
    let has = |flag: &str| field("flags").split(' ').any(|one| one == flag);
    let sets: Vec<&str> = ["avx2", "avx512f", "avx512_bf16", "amx_bf16"].into_iter().filter(|flag| has(flag)).collect();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let gpu = Command::new("nvidia-smi").args(["--query-gpu=name", "--format=csv,noheader"]).output();
    let gpu =
        gpu.ok().filter(|output| output.status.success()).map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let gpu = gpu.map(|names| format!(", {}", names.trim().replace('\n', ", "))).unwrap_or_default();
    format!("{cores} cores of {} ({}){gpu}", field("model name"), sets.join(", "))
}
