//! What the GPUs were doing, as NVIDIA's management library tells it. The library is loaded at run time; where there is none,
//! that is said and nothing fails.

use std::ffi::OsStr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use serde::{Deserialize, Serialize};

/// Time between two looks. The library's own figures are means over a sixth of a second to a second.
const EVERY: Duration = Duration::from_millis(50);

/// What was seen of the GPUs during a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GpuUse {
    /// Why there is nothing; `None` where there is.
    pub absent: Option<String>,
    /// Every GPU that the library knows, whether this program used it or not.
    pub devices: Vec<Gpu>,
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Gpu {
    /// Its name.
    pub name: String,
    /// Its identity, where `CUDA_VISIBLE_DEVICES` names GPUs by it.
    pub uuid: String,
    /// Version of the driver.
    pub driver: String,
    /// Bytes of its memory.
    pub memory: u64,
    /// Bytes in use before the first phase, by whichever program.
    pub memory_before: u64,
    /// The most bytes that were seen in use.
    pub memory_most: u64,
    /// By phase.
    pub phases: Vec<GpuPhase>,
}

/// A GPU during a phase, in shares of the time, 0 to 1.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GpuPhase {
    /// The phase.
    pub phase: String,
    /// How often it was looked at.
    pub looks: usize,
    /// Share of the time in which a kernel ran, on average.
    pub busy: f64,
    /// The largest such share.
    pub busy_most: f64,
    /// Share of the time in which its memory was read or written, on average.
    pub memory_busy: f64,
}

impl Gpu {
    fn look(&mut self, phase: &str, busy: f64, memory_busy: f64, memory: u64) {
        self.memory_most = self.memory_most.max(memory);
        if phase.is_empty() {
            return;
        }
        let known = self.phases.last_mut().filter(|p| p.phase == phase);
        let p = match known {
            Some(p) => p,
            None => {
                self.phases.push(GpuPhase { phase: phase.to_owned(), ..GpuPhase::default() });
                match self.phases.last_mut() {
                    Some(p) => p,
                    None => return,
                }
            }
        };
        // Means are kept as means.
        p.looks += 1;
        let n = p.looks as f64;
        p.busy += (busy - p.busy) / n;
        p.memory_busy += (memory_busy - p.memory_busy) / n;
        p.busy_most = p.busy_most.max(busy);
    }
}

#[derive(Debug, Default)]
struct Shared {
    phase: String,
    stop: bool,
    devices: Vec<Gpu>,
}

/// Looks at the GPUs until it is asked what it saw.
#[derive(Debug)]
pub struct Monitor {
    shared: Arc<(Mutex<Shared>, Condvar)>,
    thread: Option<JoinHandle<()>>,
    absent: Option<String>,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Monitor {
    /// Starts looking, if there is a library to look with.
    pub fn start() -> Self {
        match load().and_then(|nvml| Ok((first_look(&nvml)?, nvml))) {
            Err(e) => Self::absent(format!("NVIDIA's management library (NVML) does not tell: {e}")),
            Ok((devices, nvml)) => {
                let shared = Arc::new((Mutex::new(Shared { devices, ..Shared::default() }), Condvar::new()));
                let seen = shared.clone();
                let watch = move || watch(&nvml, &seen);
                match std::thread::Builder::new().name("nvml".into()).spawn(watch) {
                    Ok(thread) => Monitor { shared, thread: Some(thread), absent: None },
                    Err(e) => Self::absent(format!("no thread to look at it: {e}")),
                }
            }
        }
    }

    /// Looks at nothing, because of this.
    pub fn absent(reason: String) -> Self {
        Monitor { shared: Arc::default(), thread: None, absent: Some(reason) }
    }

    /// From now on it is this phase; an empty name is none.
    pub fn phase(&self, name: &str) {
        name.clone_into(&mut lock(&self.shared.0).phase);
    }

    /// What was seen.
    pub fn finish(mut self) -> GpuUse {
        self.stop();
        GpuUse { absent: self.absent.take(), devices: std::mem::take(&mut lock(&self.shared.0).devices) }
    }

    fn stop(&mut self) {
        lock(&self.shared.0).stop = true;
        self.shared.1.notify_all();
        // A thread that panicked has nothing more to say.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The library under the name that drivers install, else under that of toolkits.
fn load() -> Result<Nvml, NvmlError> {
    if cfg!(target_os = "linux")
        && let Ok(nvml) = Nvml::builder().lib_path(OsStr::new("libnvidia-ml.so.1")).init()
    {
        return Ok(nvml);
    }
    Nvml::init()
}

fn first_look(nvml: &Nvml) -> Result<Vec<Gpu>, NvmlError> {
    let driver = nvml.sys_driver_version()?;
    let device = |i| {
        let d = nvml.device_by_index(i)?;
        let memory = d.memory_info()?;
        Ok(Gpu {
            name: d.name()?,
            uuid: d.uuid()?,
            driver: driver.clone(),
            memory: memory.total,
            memory_before: memory.used,
            memory_most: memory.used,
            phases: Vec::new(),
        })
    };
    (0..nvml.device_count()?).map(device).collect()
}

/// The GPUs of this machine and how much of their memory is in use now.
///
/// # Errors
/// Why the library does not tell.
pub fn devices() -> Result<Vec<Gpu>, String> {
    load().and_then(|nvml| first_look(&nvml)).map_err(|e| e.to_string())
}

fn watch(nvml: &Nvml, (shared, asked): &(Mutex<Shared>, Condvar)) {
    let mut state = lock(shared);
    while !state.stop {
        let count = state.devices.len() as u32;
        drop(state);
        let looks: Vec<Option<(f64, f64, u64)>> = (0..count).map(|i| look(nvml, i).ok()).collect();
        state = lock(shared);
        let Shared { phase, devices, .. } = &mut *state;
        for (device, look) in devices.iter_mut().zip(looks) {
            if let Some((busy, memory_busy, memory)) = look {
                device.look(phase, busy, memory_busy, memory);
            }
        }
        state = asked.wait_timeout(state, EVERY).map_or_else(|e| e.into_inner().0, |(state, _)| state);
    }
}

fn look(nvml: &Nvml, index: u32) -> Result<(f64, f64, u64), NvmlError> {
    let device = nvml.device_by_index(index)?;
    let rates = device.utilization_rates()?;
    Ok((f64::from(rates.gpu) / 100.0, f64::from(rates.memory) / 100.0, device.memory_info()?.used))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_averaged_by_phase() {
        let mut gpu = Gpu { memory_most: 5, ..Gpu::default() };
        gpu.look("", 0.9, 0.9, 7);
        gpu.look("a", 0.2, 0.1, 9);
        gpu.look("a", 0.6, 0.3, 8);
        gpu.look("b", 1.0, 0.0, 1);
        assert_eq!(gpu.memory_most, 9);
        let [a, b] = &gpu.phases[..] else { panic!("{gpu:?}") };
        assert_eq!((a.phase.as_str(), a.looks, a.busy_most, b.busy), ("a", 2, 0.6, 1.0));
        assert!((a.busy - 0.4).abs() < 1e-12 && (a.memory_busy - 0.2).abs() < 1e-12);
    }

    #[test]
    fn a_machine_without_the_library_has_a_reason_and_one_with_it_has_devices() {
        let monitor = Monitor::start();
        monitor.phase("test");
        std::thread::sleep(2 * EVERY);
        let seen = monitor.finish();
        match &seen.absent {
            Some(reason) => assert!(reason.contains("NVML") && seen.devices.is_empty(), "{seen:?}"),
            None => assert!(seen.devices.iter().all(|d| d.memory > 0 && !d.name.is_empty()), "{seen:?}"),
        }
        assert_eq!(devices().is_err(), seen.absent.is_some());
    }
}
