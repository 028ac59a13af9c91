//! The driver's functions that this backend uses, each checked. All `unsafe` of launching is here, that of copying in `memory`.

use std::ffi::{CStr, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys::{self, CUdevice_attribute, CUfunction_attribute, CUresult};
use tersor_core::{Error, Result};

use crate::batch::Launch;
use crate::placement::JOINT;
use crate::{ID, probe};

mod graphs;
mod memory;

pub(crate) use graphs::Graph;
pub(crate) use memory::{Event, HostPage, Lane, ROOM, SLOTS};

/// An address in the memory of a GPU.
pub(crate) type Address = u64;

macro_rules! kernels {
    ($($name:ident = $text:literal),* $(,)?) => {
        /// The kernels of the embedded module.
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub(crate) enum Kernel { $(#[doc = $text] $name),* }

        const KERNELS: &[&CStr] = &[$({
            const NAME: &CStr = match CStr::from_bytes_with_nul(concat!($text, "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => c"",
            };
            NAME
        }),*];

        impl Kernel {
            /// Every kernel with its name, in the order of their numbers.
            pub(crate) const ALL: &[(Kernel, &'static str)] = &[$((Kernel::$name, $text)),*];
        }
    };
}
kernels! {
    NormGemv = "norm_gemv", NormGemvWide = "norm_gemv_wide", NormGateUp = "norm_gate_up", NormQkv = "norm_qkv",
    AttentionCluster = "attention_cluster", NormQkvAttention = "norm_qkv_attention",
    Gemv1Of3 = "gemv_1_of_3", RopeKvWrite = "rope_kv_write", GateNormQuantize = "gate_norm_quantize",
    Gemv1 = "gemv_1", Gemv1Long = "gemv_1_long", Gemv1Any = "gemv_1_any",
    HeadQ81 = "head_q8_0_1", HeadQ84 = "head_q8_0_4", HeadQ88 = "head_q8_0_8",
    HeadQ61 = "head_q6_k_1", HeadQ64 = "head_q6_k_4", HeadQ68 = "head_q6_k_8",
    HeadMmaQ81 = "head_mma_q8_0_1", HeadMmaQ82 = "head_mma_q8_0_2", HeadMmaQ84 = "head_mma_q8_0_4",
    HeadMmaQ61 = "head_mma_q6_k_1", HeadMmaQ62 = "head_mma_q6_k_2", HeadMmaQ64 = "head_mma_q6_k_4",
    PackBlocks = "pack_blocks", GatherBlocks = "gather_blocks", DequantizeBlocks = "dequantize_blocks",
    Gemv1Wide = "gemv_1_wide", Gemv2 = "gemv_2", Gemv4 = "gemv_4",
    PadRows = "pad_rows", SumBlocks = "sum_blocks",
    GemvScales = "gemv_scales", GemvScalesLong = "gemv_scales_long", GemmScales1 = "gemm_scales_1",
    GemmScales2 = "gemm_scales_2", GemmScales4 = "gemm_scales_4", GemmScalesMany = "gemm_scales_many",
    GemmRows1 = "gemm_rows_1", GemmRows2 = "gemm_rows_2", GemmRows4 = "gemm_rows_4", GemmRows8 = "gemm_rows_8",
    GemmRowsShort1 = "gemm_rows_short_1", GemmRowsShort2 = "gemm_rows_short_2", GemmRowsShort4 = "gemm_rows_short_4",
    NormRows = "norm_rows", NormRowsWide = "norm_rows_wide", GateNormRows = "gate_norm_rows",
    GemmLarge = "gemm_large", AttentionGroup = "attention_group", AttentionPair = "attention_pair",
    DenseRowsF32 = "dense_rows_f32", DenseRowsF16 = "dense_rows_f16", DenseRowsBf16 = "dense_rows_bf16",
    SplitRowsF16 = "split_rows_f16", SplitRowsBf16 = "split_rows_bf16",
    DenseMmaF161 = "dense_mma_f16_1", DenseMmaF162 = "dense_mma_f16_2", DenseMmaF164 = "dense_mma_f16_4",
    DenseMmaBf161 = "dense_mma_bf16_1", DenseMmaBf162 = "dense_mma_bf16_2", DenseMmaBf164 = "dense_mma_bf16_4",
    DenseF32 = "dense_f32", DenseF16 = "dense_f16", DenseBf16 = "dense_bf16",
    QuantizeRows = "quantize_rows", RmsNorm = "rms_norm", RmsNormQuantize = "rms_norm_quantize",
    Rope = "rope", KvWrite = "kv_write", ReluSquaredMul = "relu_squared_mul", Add = "add", GatherRows = "gather_rows",
    PrefillScores = "prefill_scores", PrefillWeights = "prefill_weights", PrefillValues = "prefill_values",
    Attention = "attention", Sample = "sample", Publish = "publish", KthLargest = "kth_largest",
    ChunkStats = "chunk_stats", Tree = "tree", QuantizeI2s = "quantize_i2s", QuantizeBytes = "quantize_bytes",
    QuantizeG64 = "quantize_g64", QuantizeG128 = "quantize_g128", QuantizeG256 = "quantize_g256",
    StageRows = "stage_rows", Gemm256x128 = "gemm_256x128", Gemm128x128 = "gemm_128x128", Gemm192x64 = "gemm_192x64",
    Gemm128x64 = "gemm_128x64", NormStage = "norm_stage", GateNormStage = "gate_norm_stage",
    RopeKvRows = "rope_kv_rows",
    Pack = "pack", PackDense = "pack_dense", Dequantize = "dequantize", Convert = "convert",
}

/// Those of a module of its own, with instructions that compute capability 9.0 alone has.
const WARPGROUPS: [Kernel; 8] = [
    Kernel::StageRows,
    Kernel::NormStage,
    Kernel::GateNormStage,
    Kernel::RopeKvRows,
    Kernel::Gemm256x128,
    Kernel::Gemm128x128,
    Kernel::Gemm192x64,
    Kernel::Gemm128x64,
];

/// Those with scores, tokens or sums in dynamic shared memory.
const LARGE: &[Kernel] = &[
    Kernel::NormGemv,
    Kernel::NormGemvWide,
    Kernel::NormGateUp,
    Kernel::NormQkv,
    Kernel::NormQkvAttention,
    Kernel::Gemm256x128,
    Kernel::Gemm128x128,
    Kernel::Gemm192x64,
    Kernel::Gemm128x64,
    Kernel::Attention,
    Kernel::AttentionCluster,
    Kernel::AttentionGroup,
    Kernel::AttentionPair,
    Kernel::PrefillScores,
    Kernel::PrefillValues,
    Kernel::DenseRowsF32,
    Kernel::DenseRowsF16,
    Kernel::DenseRowsBf16,
    Kernel::DenseMmaF161,
    Kernel::DenseMmaF162,
    Kernel::DenseMmaF164,
    Kernel::DenseMmaBf161,
    Kernel::DenseMmaBf162,
    Kernel::DenseMmaBf164,
    Kernel::HeadMmaQ61,
    Kernel::HeadMmaQ62,
    Kernel::HeadMmaQ64,
    Kernel::HeadMmaQ81,
    Kernel::HeadMmaQ82,
    Kernel::HeadMmaQ84,
    Kernel::HeadQ61,
    Kernel::HeadQ64,
    Kernel::HeadQ68,
    Kernel::HeadQ81,
    Kernel::HeadQ84,
    Kernel::HeadQ88,
    Kernel::GemmRows1,
    Kernel::GemmRows2,
    Kernel::GemmRows4,
    Kernel::GemmRows8,
    Kernel::GemmRowsShort1,
    Kernel::GemmRowsShort2,
    Kernel::GemmRowsShort4,
    Kernel::GemmScalesMany,
];

/// Kernels of a decode step, two of which have blocks on a multiprocessor at a time. Its memory is divided between a cache and
/// shared memory once for all that it runs; a kernel that wants another division waits until the others are done.
const STEP: &[Kernel] = &[
    Kernel::NormGemv,
    Kernel::NormGemvWide,
    Kernel::NormGateUp,
    Kernel::NormQkv,
    Kernel::AttentionCluster,
    Kernel::NormQkvAttention,
];
/// Their shared memory, in per cent of all: blocks of two kernels, one of which takes more than half.
const STEP_SHARED: i32 = 100;

/// The image for a GPU: its name in kernel names, and the bytes.
fn image((major, _): (i32, i32)) -> (&'static str, &'static [u8]) {
    match major {
        8 => ("sm80", include_bytes!("../kernels/built/sm_80.cubin")),
        9 => ("sm90", include_bytes!("../kernels/built/sm_90.cubin")),
        // PTX has to end in a zero, which the file does: NVRTC counts it in the size.
        _ => ("ptx80", include_bytes!("../kernels/built/compute_80.ptx")),
    }
}

/// The image with the kernels of [`WARPGROUPS`], where the GPU can run it.
fn warpgroup_image(capability: (i32, i32)) -> Option<&'static [u8]> {
    (capability == (9, 0)).then_some(include_bytes!("../kernels/built/sm_90a.cubin"))
}

/// Arguments of a launch, in the order of the kernel's parameters. Each lies in eight bytes of its own, of which the
/// driver reads as many as the parameter has.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Args(Vec<u64>);

impl Args {
    pub(crate) fn new() -> Self {
        Args(Vec::with_capacity(16))
    }
    pub(crate) fn u64(mut self, v: u64) -> Self {
        self.0.push(v);
        self
    }
    pub(crate) fn u32(self, v: u32) -> Self {
        self.u64(u64::from(v))
    }
    pub(crate) fn f32(self, v: f32) -> Self {
        self.u32(v.to_bits())
    }
    /// An argument.
    pub(crate) fn get(&self, index: usize) -> Option<u64> {
        self.0.get(index).copied()
    }
    /// Adds those of a kernel whose parameters begin with these.
    pub(crate) fn extend(&mut self, more: Args) {
        self.0.extend(more.0);
    }
    /// Whether those from an index on are these.
    pub(crate) fn have(&self, index: usize, values: &Args) -> bool {
        self.0.get(index..).is_some_and(|args| args.starts_with(&values.0))
    }
    /// Changes an argument.
    pub(crate) fn set(&mut self, index: usize, v: u64) {
        if let Some(arg) = self.0.get_mut(index) {
            *arg = v;
        }
    }
    /// As the driver takes them.
    fn pointers(&mut self) -> [*mut c_void; 40] {
        let mut pointers = [std::ptr::null_mut(); 40];
        for (p, arg) in pointers.iter_mut().zip(&mut self.0) {
            *p = std::ptr::from_mut(arg).cast();
        }
        pointers
    }
}

/// Blocks, threads of a block, and bytes of dynamic shared memory.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Grid {
    pub(crate) x: u32,
    pub(crate) y: u32,
    pub(crate) threads: u32,
    pub(crate) shared: u32,
}

impl Grid {
    pub(crate) fn new(x: u32, threads: u32) -> Self {
        Grid { x, y: 1, threads, shared: 0 }
    }
}

/// One GPU: its context, its stream, and the kernels.
#[derive(Debug)]
pub(crate) struct Driver {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// Streams of copies, which run beside the kernels.
    up: sys::CUstream,
    down: sys::CUstream,
    /// A stream that nothing runs on, for recording graphs.
    recorder: sys::CUstream,
    module: sys::CUmodule,
    warpgroup_module: sys::CUmodule,
    /// Null where the GPU has no such kernel.
    functions: Vec<sys::CUfunction>,
    /// What kernel names call the image that was loaded.
    pub(crate) isa: &'static str,
    /// Multiprocessors.
    pub(crate) processors: u32,
    /// Bytes of shared memory that a block may ask for.
    pub(crate) shared: u32,
    /// Whether kernels may start while the one before them runs, and blocks form clusters.
    pub(crate) overlaps: bool,
    /// Whether it has the kernels of [`WARPGROUPS`].
    pub(crate) warpgroups: bool,
    /// Whether sixteen blocks of `norm_qkv_attention` form a cluster. More than eight do where so many multiprocessors are together,
    /// which not all GPUs of an architecture have.
    pub(crate) joins: bool,
    /// Whether the next kernel may not.
    fence: AtomicBool,
}

// SAFETY: the handles are the driver's, whose functions may be called from any thread once the context is current, which
// every method here sees to first.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}

fn check(what: &'static str, code: CUresult) -> Result<()> {
    code.result().map_err(|e| Error::Device { backend: ID.into(), message: format!("{what}: {e}") })
}

impl Driver {
    /// Retains the primary context of the device, and loads the kernels. The probe has found the driver usable. `portable`: as
    /// on a GPU that is newer than every cubin.
    pub(crate) fn open(index: i32, portable: bool) -> Result<Self> {
        let null = std::ptr::null_mut();
        let mut d = Driver {
            device: 0,
            context: null,
            stream: std::ptr::null_mut(),
            up: std::ptr::null_mut(),
            down: std::ptr::null_mut(),
            recorder: std::ptr::null_mut(),
            module: std::ptr::null_mut(),
            warpgroup_module: std::ptr::null_mut(),
            functions: Vec::with_capacity(KERNELS.len()),
            isa: "",
            processors: 1,
            shared: 0,
            overlaps: false,
            warpgroups: false,
            joins: false,
            fence: AtomicBool::new(false),
        };
        // SAFETY: every pointer passed is to a field of `d` or a local that outlives the call, and handles come from the
        // calls before.
        unsafe {
            check("cuDeviceGet", sys::cuDeviceGet(&mut d.device, index))?;
            check("cuDevicePrimaryCtxRetain", sys::cuDevicePrimaryCtxRetain(&mut d.context, d.device))?;
            d.bind()?;
            let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            for stream in [&mut d.stream, &mut d.up, &mut d.down, &mut d.recorder] {
                check("cuStreamCreate", sys::cuStreamCreate(stream, flags))?;
            }
        }
        let capability = probe::capability(d.device)
            .map_err(|e| Error::Device { backend: ID.into(), message: format!("compute capability: {e}") })?;
        let capability = if portable { (0, 0) } else { capability };
        let (isa, bytes) = image(capability);
        d.isa = isa;
        d.overlaps = isa == "sm90";
        d.processors = d.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        d.shared = d.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        // SAFETY: the image is a whole cubin, or PTX that ends in a zero; names end in one.
        unsafe {
            check("cuModuleLoadData", sys::cuModuleLoadData(&mut d.module, bytes.as_ptr().cast()))?;
            if let Some(bytes) = warpgroup_image(capability) {
                check("cuModuleLoadData", sys::cuModuleLoadData(&mut d.warpgroup_module, bytes.as_ptr().cast()))?;
                d.warpgroups = true;
            }
            for (i, name) in KERNELS.iter().enumerate() {
                let mut f = std::ptr::null_mut();
                let apart = WARPGROUPS.iter().any(|k| *k as usize == i);
                if !apart || d.warpgroups {
                    let module = if apart { d.warpgroup_module } else { d.module };
                    check("cuModuleGetFunction", sys::cuModuleGetFunction(&mut f, module, name.as_ptr()))?;
                }
                d.functions.push(f);
            }
            // Beside less than 12 KiB of the kernels' own.
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            for kernel in LARGE {
                let f = d.functions[*kernel as usize];
                if f.is_null() {
                    continue;
                }
                check("cuFuncSetAttribute", sys::cuFuncSetAttribute(f, attribute, d.dynamic_shared() as i32))?;
            }
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
            for kernel in STEP {
                check(
                    "cuFuncSetAttribute",
                    sys::cuFuncSetAttribute(d.functions[*kernel as usize], attribute, STEP_SHARED),
                )?;
            }
            d.joins = d.overlaps && d.clusters(Kernel::NormQkvAttention, 16, JOINT.grid(1, 256, 1))? > 0;
        }
        Ok(d)
    }

    /// How many clusters of so many blocks of a kernel, which wants them, run at a time.
    ///
    /// # Safety
    /// The functions are loaded.
    unsafe fn clusters(&self, kernel: Kernel, blocks: u32, grid: Grid) -> Result<i32> {
        let f = self.functions[kernel as usize];
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: blocks, y: 1, z: 1 },
            },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: blocks * grid.x,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: grid.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: grid.shared,
            hStream: self.stream,
            attrs: &mut attribute,
            numAttrs: 1,
        };
        let allowed = CUfunction_attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
        let mut clusters = 0;
        // SAFETY: the function is of our module; what is pointed to outlives the calls.
        let code = unsafe {
            check("cuFuncSetAttribute", sys::cuFuncSetAttribute(f, allowed, 1))?;
            sys::cuOccupancyMaxActiveClusters(&mut clusters, f, &config)
        };
        match code {
            CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE => Ok(0),
            code => check("cuOccupancyMaxActiveClusters", code).map(|()| clusters),
        }
    }

    /// Keeps the next kernel from starting before all work so far is done.
    pub(crate) fn fence(&self) {
        self.fence.store(true, Ordering::Relaxed);
    }

    /// Bytes of dynamic shared memory that a block may ask for.
    pub(crate) fn dynamic_shared(&self) -> u32 {
        self.shared.saturating_sub(12 << 10)
    }

    /// Whether the loaded images have a kernel.
    pub(crate) fn has(&self, kernel: Kernel) -> bool {
        self.functions.get(kernel as usize).is_some_and(|f| !f.is_null())
    }

    fn attribute(&self, attribute: CUdevice_attribute) -> Result<u32> {
        let mut value = 0;
        // SAFETY: `value` outlives the call, the device is the driver's.
        check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, self.device) })?;
        Ok(value.max(0) as u32)
    }

    /// Makes the context current on this thread.
    fn bind(&self) -> Result<()> {
        // SAFETY: the context was retained and is released only when `self` is dropped.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    /// Waits for all submitted work.
    pub(crate) fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream is ours.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    /// Launches a kernel, in stream order.
    ///
    /// # Safety
    /// The arguments are what the kernel's parameters call for, and every address among them is valid for what the kernel
    /// does at it, until the work is done.
    pub(crate) unsafe fn launch(&self, launch: &mut Launch) -> Result<()> {
        self.bind()?;
        // The first kernel after new weights waits as a whole, as products read weights at once.
        let overlap = self.overlaps && !self.fence.swap(false, Ordering::Relaxed);
        // SAFETY: by contract.
        unsafe { self.launch_on(self.stream, launch, overlap) }
    }

    /// # Safety
    /// As for [`Driver::launch`].
    unsafe fn launch_on(&self, stream: sys::CUstream, launch: &mut Launch, overlap: bool) -> Result<()> {
        // Where the kernels have the instructions for it, a kernel may start while the one before it runs, and waits itself;
        // see kernels/common.cuh.
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let Grid { x, y, threads, shared } = launch.grid;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: 1,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared,
            hStream: stream,
            attrs: &mut attribute,
            numAttrs: u32::from(overlap),
        };
        let (f, mut pointers) = (self.functions[launch.kernel as usize], launch.args.pointers());
        // SAFETY: the function is of our module; the configuration outlives the call; arguments are right by contract, and
        // copied by the call.
        let code = unsafe { sys::cuLaunchKernelEx(&config, f, pointers.as_mut_ptr(), std::ptr::null_mut()) };
        let kernel = launch.kernel;
        code.result()
            .map_err(|e| Error::Device { backend: ID.into(), message: format!("cuLaunchKernelEx {kernel:?}: {e}") })
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // After a device error each of these fails too, and there is nobody to tell.
        if self.bind().is_ok() {
            // SAFETY: handles are null or ours, and used no more.
            unsafe {
                for stream in [self.stream, self.up, self.down, self.recorder] {
                    if !stream.is_null() {
                        let _ = sys::cuStreamSynchronize(stream);
                        let _ = sys::cuStreamDestroy_v2(stream);
                    }
                }
                for module in [self.module, self.warpgroup_module] {
                    if !module.is_null() {
                        let _ = sys::cuModuleUnload(module);
                    }
                }
            }
        }
        if !self.context.is_null() {
            // SAFETY: it was retained once, by `open`.
            let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
        }
    }
}
