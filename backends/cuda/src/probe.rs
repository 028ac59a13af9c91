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

/// Every function of the driver that is called. Calling one that the library lacks would panic.
const FUNCTIONS: [&str; 44] = [
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncSetAttribute",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphExecKernelNodeSetParams_v2",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernelEx",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemHostGetDevicePointer_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuOccupancyMaxActiveClusters",
    "cuPointerGetAttributes",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamGetCaptureInfo_v2",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
];

/// Whether the library, which is there, has a function.
fn has(name: &str) -> bool {
    // SAFETY: the library is loaded by the same rules as in `devices`; the symbol is only looked up, not called.
    unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_ok()
}

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
    // Its version comes first: what else is missing is then no surprise.
    if !has("cuDriverGetVersion") {
        return Err("the NVIDIA driver library has no cuDriverGetVersion: it is no driver, or far too old".into());
    }
    let mut version = 0;
    // SAFETY: the function writes one integer; it is in every driver, and may be called before initialisation.
    let asked = unsafe { sys::cuDriverGetVersion(&mut version) }.result();
    asked.map_err(|e| format!("the NVIDIA driver does not tell its version: {e}"))?;
    if version < OLDEST_DRIVER {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Err(format!("the NVIDIA driver is for CUDA {major}.{minor}; 12.0 (driver 525) or newer is needed"));
    }
    if let Some(name) = FUNCTIONS.into_iter().find(|name| !has(name)) {
        return Err(format!("the NVIDIA driver library has no {name}: it is not what its version says"));
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
    if found.is_empty() {
        return Err(rejected.join("; "));
    }
    // Beside others that can be used, one that cannot is told to who looks for it.
    rejected.iter().for_each(|reason| tracing::info!("{reason}"));
    Ok(found)
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

#[cfg(test)]
mod tests {
    use super::FUNCTIONS;

    /// Those that `cudarc::driver::result` calls for us.
    const THROUGH_RESULT: [&str; 5] =
        ["cuDeviceGetCount", "cuDeviceGetName", "cuDeviceTotalMem_v2", "cuGetErrorString", "cuInit"];

    #[test]
    fn the_list_of_functions_is_what_the_sources_call() {
        let sources = [
            include_str!("driver.rs"),
            include_str!("driver/graphs.rs"),
            include_str!("driver/memory.rs"),
            include_str!("probe.rs"),
        ]
        .concat();
        let mut called: Vec<&str> = sources
            .split("sys::cu")
            .skip(1)
            .filter(|rest| rest.starts_with(char::is_uppercase))
            .map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default())
            .collect();
        let list: Vec<&str> = FUNCTIONS.iter().map(|name| &name[2..]).collect();
        called.extend(THROUGH_RESULT.map(|name| &name[2..]));
        called.sort_unstable();
        called.dedup();
        assert_eq!(called, list);
    }
}
