//! How much memory the process took.

/// The most resident memory the process had so far, in bytes. Linux tells it (`VmHWM`); elsewhere there is no such number
/// without calling the system's own interface, and `None` says so.
pub(crate) fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_os = "linux")]
    fn the_peak_is_at_least_what_a_test_touches() {
        let touched = vec![1u8; 32 << 20];
        assert!(super::peak_rss().unwrap() > std::hint::black_box(&touched).len() as u64);
    }
}
