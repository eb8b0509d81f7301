//! Memory that a process has had from the kernel stays with it.
//!
//! glibc gives large blocks back as soon as they are freed. Activations and gradients are such blocks, freed and wanted again
//! in every batch; each time, the kernel would hand them out and fill them with zeros page by page. That takes a seventh of a
//! training step of AlexNet (`crates/bench/BENCHMARKS.md`).
#![cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "malloc is told by a function of C"))]

/// Makes malloc keep what it has, for all threads. To be called before a process has any others: those would already have
/// arenas of their own, which cannot hold large blocks.
pub fn keep() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_MAX, 0), (libc::M_TRIM_THRESHOLD, -1)] {
        // SAFETY: mallopt only sets a parameter of malloc, under malloc's own lock; a value that it does not like it refuses,
        // and then nothing but the speed is another.
        unsafe { libc::mallopt(parameter, value) };
    }
}
