//! How many threads a service computes with, and how those of the native libraries wait.
//!
//! libgomp (libtorch's and faiss's threads) and OpenBLAS let a thread without work spin, so that it starts the next piece at
//! once. Beside other processes on the same cores this takes the time that the others, and its own other threads, need. All of
//! it is set by environment variables that the libraries read when they are loaded, before `main`: a service therefore starts
//! itself once more, in the same process, with those set that its user did not set.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Rounds that a thread of libgomp without work spins before it sleeps; a few microseconds. Its own default, 300,000, spins for
/// milliseconds. `crates/bench/BENCHMARKS.md` has what other values cost, alone and beside others.
const SPIN_ROUNDS: &str = "1000";

/// Power of two of the processor cycles that a thread of OpenBLAS without work spins; its own default is 26, its least 4.
const OPENBLAS_SPIN: &str = "10";

/// Number of threads, and why so many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadCount {
    /// At least 1.
    pub count: usize,
    /// Why, for the log.
    pub reason: String,
}

impl ThreadCount {
    /// As many as a flag demands, or as the process may use where it demands 0.
    pub fn new(requested: usize) -> Self {
        if requested > 0 {
            return Self { count: requested, reason: "--threads".to_owned() };
        }
        let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let allowed = cpus_in("/proc/self/status", "Cpus_allowed_list:");
        let online = cpus_in("/sys/devices/system/cpu/online", "");
        Self { count, reason: reason(count, allowed, online) }
    }
}

/// Why a process computes with `count` threads where its affinity allows `allowed` of `online` CPUs.
fn reason(count: usize, allowed: Option<usize>, online: Option<usize>) -> String {
    match (allowed, online) {
        (Some(allowed), _) if count < allowed => format!("CPU quota of the cgroup; the affinity allows {allowed} CPUs"),
        (Some(allowed), Some(online)) if allowed < online => format!("CPU affinity; the host has {online} CPUs"),
        _ => "all CPUs of the host".to_owned(),
    }
}

/// Number of CPUs that a line of a file of the kernel lists, as `0-3,8`; none where it cannot be read.
fn cpus_in(path: &str, prefix: &str) -> Option<usize> {
    let text = fs::read_to_string(path).ok()?;
    cpus_of_list(text.lines().find_map(|line| line.strip_prefix(prefix))?.trim())
}

fn cpus_of_list(list: &str) -> Option<usize> {
    let mut count = 0;
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        count += last.checked_sub(first)? + 1;
    }
    Some(count)
}

/// The variables that make native libraries compute with `threads` threads that wait without spinning for long, less those
/// that are set already.
pub fn environment(threads: usize) -> Vec<(&'static str, String)> {
    missing(threads, |name| std::env::var_os(name).is_some())
}

fn missing(threads: usize, is_set: impl Fn(&str) -> bool) -> Vec<(&'static str, String)> {
    let mut variables = vec![
        ("OMP_NUM_THREADS", threads.to_string()),
        ("OPENBLAS_NUM_THREADS", threads.to_string()),
        ("OPENBLAS_THREAD_TIMEOUT", OPENBLAS_SPIN.to_owned()),
    ];
    // Who sets the policy has decided about spinning.
    if !is_set("OMP_WAIT_POLICY") {
        variables.push(("GOMP_SPINCOUNT", SPIN_ROUNDS.to_owned()));
    }
    variables.retain(|(name, _)| !is_set(name));
    variables
}

/// Makes the native libraries of this process follow [`environment`]: where a variable is missing, the program takes the
/// place of itself with it. To be called at the start of `main`, before there is anything to lose.
///
/// # Errors
/// When the program cannot be started again; this one then goes on as it is.
pub fn apply_environment(threads: usize) -> io::Result<()> {
    let variables = environment(threads);
    if variables.is_empty() {
        return Ok(());
    }
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    Err(Command::new(std::env::current_exe()?).arg0(name).args(arguments).envs(variables).exec())
}

/// What decides how threads wait, as they are set now, for the log.
pub fn waiting() -> String {
    let names = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OPENBLAS_THREAD_TIMEOUT"];
    let mut words = Vec::new();
    for name in names {
        if let Some(value) = std::env::var_os(name) {
            words.push(format!("{name}={}", value.display()));
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_counted() {
        assert_eq!(cpus_of_list("0-3,8,10-11"), Some(7));
        assert_eq!(cpus_of_list("5"), Some(1));
        for list in ["", "3-1", "a-b", "1,,2"] {
            assert_eq!(cpus_of_list(list), None, "{list}");
        }
        assert!(cpus_in("/proc/self/status", "Cpus_allowed_list:").unwrap() >= 1);
    }

    #[test]
    fn the_reason_names_what_limits_the_threads() {
        assert!(reason(2, Some(8), Some(64)).starts_with("CPU quota"));
        assert_eq!(reason(8, Some(8), Some(64)), "CPU affinity; the host has 64 CPUs");
        assert_eq!(reason(64, Some(64), Some(64)), "all CPUs of the host");
        assert_eq!(ThreadCount::new(3), ThreadCount { count: 3, reason: "--threads".to_owned() });
    }

    #[test]
    fn what_the_user_set_is_left_alone() {
        let names = |set: &[&str]| missing(2, |name| set.contains(&name)).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert!(names(&[]).contains(&"GOMP_SPINCOUNT"));
        assert!(!names(&["GOMP_SPINCOUNT"]).contains(&"GOMP_SPINCOUNT"));
        assert!(!names(&["OMP_WAIT_POLICY"]).contains(&"GOMP_SPINCOUNT"));
        assert!(names(&["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENBLAS_THREAD_TIMEOUT", "GOMP_SPINCOUNT"]).is_empty());
    }
}
