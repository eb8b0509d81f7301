//! Fail points: where chaos tests end this process, before and after every durable step.
//!
//! A point is named by what was just done and to which kind of file: `renamed:labels.npy`. In a build with the feature
//! `failpoints`, `FAILPOINTS='renamed:labels.npy=return'` (syntax of the crate `fail`) aborts the process there, and
//! `DC_STEPS=FILE` names a file to which every point that was passed is added. Without the feature, nothing of this exists.

#[cfg(feature = "failpoints")]
pub(crate) use with_points::step;

#[cfg(not(feature = "failpoints"))]
pub(crate) fn step(_at: &str, _target: &std::path::Path) {}

#[cfg(feature = "failpoints")]
mod with_points {
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::path::Path;
    use std::sync::Once;

    /// A durable step of this process: the tests may end it here.
    pub(crate) fn step(at: &str, target: &Path) {
        // The environment is read at the first step; its points stay for the life of the process.
        static SETUP: Once = Once::new();
        SETUP.call_once(|| std::mem::forget(fail::FailScenario::setup()));
        let point = format!("{at}:{}", kind_of(target));
        if let Some(path) = std::env::var_os("DC_STEPS") {
            let steps = OpenOptions::new().create(true).append(true).open(path);
            let _ = steps.and_then(|mut steps| steps.write_all(format!("{point}\n").as_bytes()));
        }
        fail::fail_point!(point.as_str(), |_| std::process::abort());
    }

    /// A file's name without its numbers and what marks it as temporary.
    fn kind_of(target: &Path) -> String {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let name = name.trim_start_matches('.').trim_end_matches(crate::publish::TEMPORARY);
        name.split(['.', '-']).filter(|part| !part.bytes().all(|byte| byte.is_ascii_digit())).collect::<Vec<_>>().join(".")
    }
}
