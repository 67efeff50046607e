//! How much memory is free.

/// Bytes that this process can still take without swapping; `None` where the system does not tell.
///
/// Linux's `MemAvailable`, or less where a control group allows less.
pub(crate) fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kilobytes = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next());
    let machine = kilobytes?.parse::<u64>().ok()? * 1024;
    let group = |file: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse::<u64>().ok();
    let allowed = group("memory.max").zip(group("memory.current")).map(|(most, used)| most.saturating_sub(used));
    Some(allowed.map_or(machine, |allowed| allowed.min(machine)))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #[test]
    fn linux_tells() {
        assert!(super::available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
