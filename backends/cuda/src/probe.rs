//! Is there a driver, and what does it drive?

use cudarc::driver::sys::CUdevice_attribute;
use cudarc::driver::{result, sys};
use tersor_core::{DeviceInfo, DeviceKind, Probe};

/// The oldest driver interface that has every function we call.
const OLDEST_DRIVER: i32 = 12_000;

/// The oldest compute capability that kernels are compiled for.
const OLDEST_CAPABILITY: (i32, i32) = (8, 0);

/// The generation that the kernels have been run on. Images for others are embedded (sm_80, and PTX for what is newer), but
/// nobody has seen them work; whoever runs `examples/selftest` on such a GPU adds its generation here.
const SEEN_WORKING: [i32; 1] = [9];

/// Asks the driver, if there is one. No context is created.
pub(crate) fn probe() -> Probe {
    match devices() {
        Ok(devices) => Probe::Usable { devices },
        Err(reason) => Probe::Unusable { reason },
    }
}

fn devices() -> Result<Vec<DeviceInfo>, String> {
    // Calls into a library that is missing would panic, so this comes first.
    // SAFETY: the NVIDIA driver library is loaded by the system's own search rules; its initialisers are the vendor's.
    if !unsafe { sys::is_culib_present() } {
        return Err("the NVIDIA driver library (libcuda.so.1 or nvcuda.dll) is not on this machine".into());
    }
    let mut version = 0;
    // SAFETY: the function writes one integer; it is in every driver, and may be called before initialisation.
    let asked = unsafe { sys::cuDriverGetVersion(&mut version) }.result();
    asked.map_err(|e| format!("the NVIDIA driver does not tell its version: {e}"))?;
    if version < OLDEST_DRIVER {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Err(format!("the NVIDIA driver is for CUDA {major}.{minor}; 12.0 (driver 525) or newer is needed"));
    }
    result::init().map_err(|e| format!("the NVIDIA driver does not start: {e}"))?;
    let count = result::device::get_count().map_err(|e| format!("the NVIDIA driver cannot count its devices: {e}"))?;
    if count == 0 {
        return Err("the NVIDIA driver finds no GPU".into());
    }
    let mut rejected = Vec::new();
    let mut found = Vec::new();
    for index in 0..count {
        match device(index) {
            Ok(info) => found.push(info),
            Err(reason) => rejected.push(reason),
        }
    }
    if found.is_empty() { Err(rejected.join("; ")) } else { Ok(found) }
}

fn device(index: i32) -> Result<DeviceInfo, String> {
    let failed = |e| format!("GPU {index} does not answer: {e}");
    let device = result::device::get(index).map_err(failed)?;
    let name = result::device::get_name(device).map_err(failed)?;
    let (major, minor) = capability(device).map_err(failed)?;
    if (major, minor) < OLDEST_CAPABILITY {
        let (need_major, need_minor) = OLDEST_CAPABILITY;
        return Err(format!(
            "GPU {index} ({name}) has compute capability {major}.{minor}; {need_major}.{need_minor} or newer is needed"
        ));
    }
    if !SEEN_WORKING.contains(&major) {
        return Err(format!(
            "GPU {index} ({name}) has compute capability {major}.{minor}; the kernels for it were never run on such a GPU, so they are not used"
        ));
    }
    // SAFETY: `device` came from the driver.
    let memory = unsafe { result::device::total_mem(device) }.map_err(failed)?;
    let memory = Some(memory as u64);
    Ok(DeviceInfo { index: index as usize, kind: DeviceKind::Gpu, name, isas: Vec::new(), memory })
}

/// The compute capability.
pub(crate) fn capability(device: sys::CUdevice) -> Result<(i32, i32), result::DriverError> {
    use CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    // SAFETY: `device` came from the driver.
    unsafe { Ok((result::device::get_attribute(device, MAJOR)?, result::device::get_attribute(device, MINOR)?)) }
}
