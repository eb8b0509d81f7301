//! How much memory a process of this machine takes.

/// The peak of its resident memory in bytes; none where there is no such process or the kernel does not tell.
pub fn peak_resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = peak.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_what_it_took() {
        let touched = vec![1u8; 64 << 20];
        assert!(peak_resident(std::process::id()).unwrap() >= touched.iter().map(|byte| u64::from(*byte)).sum());
        assert_eq!(peak_resident(u32::MAX), None);
    }
}
