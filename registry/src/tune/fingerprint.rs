//! What a machine is, as far as the choice of kernels depends on it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tersor_core::Probe;

use crate::Found;

/// Measurements are believed where this is equal. ISAs are the usable ones, as the probes report them: what the operating
/// system or a virtual machine hides is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The processor's own name.
    pub cpu: String,
    /// ISA tiers that some backend can use here.
    pub isas: Vec<String>,
    /// Caches of the first core, smallest first: `L1 Data 48K`. Empty where the system does not tell.
    pub caches: Vec<String>,
    /// Cores that the process may run on. Empty where the system does not tell.
    pub affinity: String,
}

impl Fingerprint {
    /// Of this machine, with what probes said.
    pub fn of(found: &[Found]) -> Self {
        let devices = || {
            let usable = |f: &Found| match &f.probe {
                Probe::Usable { devices } => devices.clone(),
                Probe::Unusable { .. } => Vec::new(),
            };
            found.iter().flat_map(usable).filter(|d| d.memory.is_none())
        };
        let mut isas: Vec<String> = devices().flat_map(|d| d.isas).map(|isa| isa.id().to_owned()).collect();
        isas.sort();
        isas.dedup();
        Fingerprint {
            cpu: devices().map(|d| d.name).next().unwrap_or_default(),
            isas,
            caches: caches().into_iter().map(|c| format!("L{} {} {}", c.level, c.kind, c.size)).collect(),
            affinity: affinity().unwrap_or_default(),
        }
    }

    /// A short name of it for files: half of a SHA-256.
    pub fn hash(&self) -> String {
        let text = format!("{}\n{}\n{}\n{}", self.cpu, self.isas.join(","), self.caches.join(","), self.affinity);
        Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// One cache of the first core.
struct Cache {
    level: u32,
    kind: String,
    size: String,
}

#[cfg(target_os = "linux")]
fn caches() -> Vec<Cache> {
    let read = |index: usize, file: &str| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{file}");
        std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
    };
    let cache = |index| {
        let (level, kind, size) = (read(index, "level")?, read(index, "type")?, read(index, "size")?);
        Some(Cache { level: level.parse().ok()?, kind, size })
    };
    (0..).map_while(cache).collect()
}

#[cfg(not(target_os = "linux"))]
fn caches() -> Vec<Cache> {
    Vec::new()
}

#[cfg(target_os = "linux")]
fn affinity() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    Some(status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.trim().to_owned())
}

#[cfg(not(target_os = "linux"))]
fn affinity() -> Option<String> {
    None
}

/// Bytes of the largest cache; `None` where the system does not tell.
pub fn last_level_cache() -> Option<u64> {
    data_caches().pop()
}

/// Bytes of the largest cache below the last level, which is a core's own on processors that have three.
pub fn inner_cache() -> Option<u64> {
    let mut sizes = data_caches();
    sizes.pop();
    sizes.pop()
}

/// Bytes of the caches that hold data, smallest first.
fn data_caches() -> Vec<u64> {
    let bytes = |cache: &Cache| {
        let (digits, unit) = cache.size.split_at(cache.size.find(|c: char| !c.is_ascii_digit())?);
        let unit = match unit {
            "K" => 1 << 10,
            "M" => 1 << 20,
            "G" => 1 << 30,
            _ => return None,
        };
        digits.parse::<u64>().ok()?.checked_mul(unit)
    };
    let mut sizes: Vec<u64> = caches().iter().filter(|c| c.kind != "Instruction").filter_map(bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_changes_the_name() {
        let base = Fingerprint::of(&[]);
        assert_eq!(base.hash().len(), 16);
        let more = |text: &str| vec![text.to_owned()];
        for other in [
            Fingerprint { cpu: "another".into(), ..base.clone() },
            Fingerprint { isas: more("avx2"), ..base.clone() },
            Fingerprint { caches: more("L9"), ..base.clone() },
            Fingerprint { affinity: "none".into(), ..base.clone() },
        ] {
            assert_ne!(other.hash(), base.hash());
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn linux_tells_where_a_process_may_run() {
        assert!(!Fingerprint::of(&[]).affinity.is_empty());
    }
}
