//! Where and by what a figure was made. What the system does not tell is absent.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// The machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// The instruction set architecture.
    pub arch: String,
    /// Physical cores; `None` where the system does not tell.
    pub cores: Option<usize>,
    /// Threads that this process may run at once.
    pub threads: usize,
    /// Caches of the first processor, level by level.
    pub caches: Vec<Cache>,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes available at the start of the run.
    pub memory_available: u64,
    /// The operating system with its version.
    pub os: String,
    /// The kernel's version.
    pub kernel: String,
}

/// A cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// 1, 2, 3.
    pub level: u32,
    /// `Data`, `Instruction` or `Unified`.
    pub kind: String,
    /// Bytes.
    pub bytes: u64,
    /// Processors that share it, as the system lists them.
    pub shared_by: String,
}

impl Machine {
    /// Asks the system.
    pub fn detect() -> Self {
        let wanted = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        let system = System::new_with_specifics(wanted).ok();
        let system = system.as_ref();
        let cpu = system.and_then(|s| s.cpus().first()).map(|c| c.brand().trim().to_owned()).unwrap_or_default();
        // A container may have less than the machine.
        let limit = system.and_then(System::cgroup_limits);
        let memory = system.map_or(0, System::total_memory);
        let available = system.map_or(0, System::available_memory);
        Machine {
            cpu,
            arch: std::env::consts::ARCH.to_owned(),
            cores: System::physical_core_count().ok(),
            threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
            caches: caches(Path::new("/sys/devices/system/cpu/cpu0/cache")),
            memory: limit.as_ref().map_or(memory, |l| l.total_memory.min(memory)),
            memory_available: limit.as_ref().map_or(available, |l| l.free_memory.min(available)),
            os: System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.to_owned()),
            kernel: System::kernel_version().unwrap_or_default(),
        }
    }

    /// The last-level cache.
    pub fn last_level_cache(&self) -> Option<&Cache> {
        self.caches.iter().filter(|c| c.kind != "Instruction").max_by_key(|c| c.level)
    }
}

/// Linux tells in `/sys`; elsewhere the list is empty.
fn caches(directory: &Path) -> Vec<Cache> {
    let mut found = Vec::new();
    for i in 0.. {
        let index = directory.join(format!("index{i}"));
        let read = |name: &str| std::fs::read_to_string(index.join(name)).ok().map(|s| s.trim().to_owned());
        let (Some(level), Some(kind), Some(size)) = (read("level"), read("type"), read("size")) else { break };
        let (Ok(level), Some(bytes)) = (level.parse(), size_in_bytes(&size)) else { continue };
        found.push(Cache { level, kind, bytes, shared_by: read("shared_cpu_list").unwrap_or_default() });
    }
    found
}

/// `48K` and `260M`, as sysfs writes them.
fn size_in_bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_shl(shift)
}

/// The program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Build {
    /// Version of the benchmark.
    pub version: String,
    /// The compiler.
    pub rustc: String,
    /// `release` or `debug`, as Cargo names the family of the profile.
    pub profile: String,
    /// Optimisation level.
    pub opt_level: String,
    /// The target.
    pub target: String,
    /// Flags beyond the profile's.
    pub rustflags: String,
    /// Whether debug assertions are on.
    pub debug_assertions: bool,
    /// The commit; `None` where it was not built in a git checkout. Changes that were not committed do not show.
    pub commit: Option<String>,
}

impl Build {
    /// What was noted at build time.
    pub fn this() -> Self {
        let known = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Build {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            rustc: env!("TERSOR_BUILD_RUSTC").to_owned(),
            profile: env!("TERSOR_BUILD_PROFILE").to_owned(),
            opt_level: env!("TERSOR_BUILD_OPT_LEVEL").to_owned(),
            target: env!("TERSOR_BUILD_TARGET").to_owned(),
            rustflags: env!("TERSOR_BUILD_RUSTFLAGS").to_owned(),
            debug_assertions: cfg!(debug_assertions),
            commit: known(env!("TERSOR_BUILD_COMMIT")),
        }
    }
}

/// Processor time of this process so far, all threads; `None` where the system does not tell.
pub fn cpu_time() -> Option<Duration> {
    #[cfg(unix)]
    {
        use nix::sys::resource::{UsageWho, getrusage};
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
        let part = |t: nix::sys::time::TimeVal| {
            let seconds = u64::try_from(t.tv_sec()).ok()?;
            Some(Duration::from_secs(seconds) + Duration::from_micros(u64::try_from(t.tv_usec()).ok()?))
        };
        Some(part(usage.user_time())? + part(usage.system_time())?)
    }
    #[cfg(not(unix))]
    None
}

/// The most bytes of this process that were ever resident; `None` where the system does not tell.
pub fn peak_rss() -> Option<u64> {
    #[cfg(unix)]
    {
        use nix::sys::resource::{UsageWho, getrusage};
        let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
        u64::try_from(getrusage(UsageWho::RUSAGE_SELF).ok()?.max_rss()).ok().map(|v| v * unit)
    }
    #[cfg(not(unix))]
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_sysfs_writes_them() {
        assert_eq!(size_in_bytes("48K"), Some(48 << 10));
        assert_eq!(size_in_bytes("266240K"), Some(260 << 20));
        assert_eq!(size_in_bytes("32M"), Some(32 << 20));
        assert_eq!(size_in_bytes("x"), None);
        assert_eq!(size_in_bytes(""), None);
    }

    #[test]
    fn a_directory_without_caches_has_none() {
        assert!(caches(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn this_machine_and_build_are_described() {
        let m = Machine::detect();
        assert!(m.threads >= 1 && m.memory > 0, "{m:?}");
        let b = Build::this();
        assert!(b.rustc.starts_with("rustc ") && !b.profile.is_empty(), "{b:?}");
    }

    #[cfg(unix)]
    #[test]
    fn processor_time_and_memory_grow_with_work() {
        let before = cpu_time().unwrap();
        let v: Vec<u64> = (0..4_000_000).map(|i: u64| i.wrapping_mul(0x9e37_79b9)).collect();
        assert!(v.iter().fold(0, |a: u64, b| a ^ b) != 1);
        assert!(cpu_time().unwrap() > before);
        assert!(peak_rss().unwrap() > 4_000_000);
    }
}
