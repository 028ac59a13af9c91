//! The driver's functions that this backend uses, each checked. All `unsafe` of launching and copying is here.

use std::ffi::{CStr, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys::{self, CUdevice_attribute, CUfunction_attribute, CUresult};
use tersor_core::{Error, Result};

use crate::batch::Launch;
use crate::{ID, probe};

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
    };
}
kernels! {
    NormGemv = "norm_gemv", NormGemvWide = "norm_gemv_wide", NormGateUp = "norm_gate_up", NormQkv = "norm_qkv",
    AttentionCluster = "attention_cluster",
    Gemv1Of3 = "gemv_1_of_3", RopeKvWrite = "rope_kv_write", GateNormQuantize = "gate_norm_quantize",
    Gemv1 = "gemv_1",
    Gemv1Wide = "gemv_1_wide", Gemv2 = "gemv_2", Gemv4 = "gemv_4",
    PadRows = "pad_rows", GemmBlocks = "gemm_blocks",
    GemmSmall1 = "gemm_small_1", GemmSmall2 = "gemm_small_2", GemmSmall4 = "gemm_small_4", GemmLarge = "gemm_large",
    DenseF32 = "dense_f32", DenseF16 = "dense_f16", DenseBf16 = "dense_bf16",
    QuantizeRows = "quantize_rows", RmsNorm = "rms_norm", RmsNormQuantize = "rms_norm_quantize",
    Rope = "rope", KvWrite = "kv_write", ReluSquaredMul = "relu_squared_mul", Add = "add", GatherRows = "gather_rows",
    Attention = "attention", Sample = "sample", KthLargest = "kth_largest",
    ChunkStats = "chunk_stats", Tree = "tree", QuantizeI2s = "quantize_i2s", QuantizeBytes = "quantize_bytes",
    QuantizeG64 = "quantize_g64", QuantizeG128 = "quantize_g128", QuantizeG256 = "quantize_g256",
    Pack = "pack", PackDense = "pack_dense", Dequantize = "dequantize", Convert = "convert",
}

/// The image for a GPU: its name in kernel names, and the bytes.
fn image((major, _): (i32, i32)) -> (&'static str, &'static [u8]) {
    match major {
        8 => ("sm80", include_bytes!("../kernels/built/sm_80.cubin")),
        9 => ("sm90", include_bytes!("../kernels/built/sm_90.cubin")),
        // PTX has to end in a zero, which the file does: NVRTC counts it in the size.
        _ => ("ptx80", include_bytes!("../kernels/built/compute_80.ptx")),
    }
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
    /// As the driver takes them.
    fn pointers(&mut self) -> [*mut c_void; 32] {
        let mut pointers = [std::ptr::null_mut(); 32];
        for (p, arg) in pointers.iter_mut().zip(&mut self.0) {
            *p = std::ptr::from_mut(arg).cast();
        }
        pointers
    }
}

/// A recorded sequence of launches.
#[derive(Debug)]
pub(crate) struct Graph {
    graph: sys::CUgraph,
    exec: sys::CUgraphExec,
    nodes: Vec<sys::CUgraphNode>,
}

// SAFETY: the handles are the driver's, which may be used from any thread, one at a time.
unsafe impl Send for Graph {}

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
    /// A stream that nothing runs on, for recording graphs.
    recorder: sys::CUstream,
    module: sys::CUmodule,
    functions: Vec<sys::CUfunction>,
    /// What kernel names call the image that was loaded.
    pub(crate) isa: &'static str,
    /// Multiprocessors.
    pub(crate) processors: u32,
    /// Bytes of shared memory that a block may ask for.
    pub(crate) shared: u32,
    /// Whether kernels may start while the one before them runs, and blocks form clusters.
    pub(crate) overlaps: bool,
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
    /// Retains the primary context of the device, and loads the kernels. The probe has found the driver usable.
    pub(crate) fn open(index: i32) -> Result<Self> {
        let null = std::ptr::null_mut();
        let mut d = Driver {
            device: 0,
            context: null,
            stream: std::ptr::null_mut(),
            recorder: std::ptr::null_mut(),
            module: std::ptr::null_mut(),
            functions: Vec::with_capacity(KERNELS.len()),
            isa: "",
            processors: 1,
            shared: 0,
            overlaps: false,
            fence: AtomicBool::new(false),
        };
        // SAFETY: every pointer passed is to a field of `d` or a local that outlives the call, and handles come from the
        // calls before.
        unsafe {
            check("cuDeviceGet", sys::cuDeviceGet(&mut d.device, index))?;
            check("cuDevicePrimaryCtxRetain", sys::cuDevicePrimaryCtxRetain(&mut d.context, d.device))?;
            d.bind()?;
            let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            check("cuStreamCreate", sys::cuStreamCreate(&mut d.stream, flags))?;
            check("cuStreamCreate", sys::cuStreamCreate(&mut d.recorder, flags))?;
        }
        let capability = probe::capability(d.device)
            .map_err(|e| Error::Device { backend: ID.into(), message: format!("compute capability: {e}") })?;
        let (isa, bytes) = image(capability);
        d.isa = isa;
        d.overlaps = isa == "sm90";
        d.processors = d.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        d.shared = d.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        // SAFETY: the image is a whole cubin, or PTX that ends in a zero; names end in one.
        unsafe {
            check("cuModuleLoadData", sys::cuModuleLoadData(&mut d.module, bytes.as_ptr().cast()))?;
            for name in KERNELS {
                let mut f = std::ptr::null_mut();
                check("cuModuleGetFunction", sys::cuModuleGetFunction(&mut f, d.module, name.as_ptr()))?;
                d.functions.push(f);
            }
            // Scores of attention are in dynamic shared memory; the kernels' own takes less than 4 KiB.
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            for kernel in [Kernel::Attention, Kernel::AttentionCluster] {
                let f = d.functions[kernel as usize];
                check("cuFuncSetAttribute", sys::cuFuncSetAttribute(f, attribute, d.dynamic_shared() as i32))?;
            }
        }
        Ok(d)
    }

    /// Keeps the next kernel from starting before all work so far is done.
    pub(crate) fn fence(&self) {
        self.fence.store(true, Ordering::Relaxed);
    }

    /// Bytes of dynamic shared memory that a block may ask for.
    pub(crate) fn dynamic_shared(&self) -> u32 {
        self.shared.saturating_sub(4096)
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

    /// Device memory; `None` where there is not enough.
    pub(crate) fn alloc(&self, bytes: usize) -> Result<Option<Address>> {
        self.bind()?;
        let mut at = 0;
        // SAFETY: `at` outlives the call.
        match unsafe { sys::cuMemAlloc_v2(&mut at, bytes) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Ok(None),
            code => check("cuMemAlloc", code).map(|()| Some(at)),
        }
    }

    /// Gives memory back to the driver, after all work.
    ///
    /// # Safety
    /// `at` came from [`Driver::alloc`] and is used no more.
    pub(crate) unsafe fn free(&self, at: Address) -> Result<()> {
        self.bind()?;
        // SAFETY: by contract.
        check("cuMemFree", unsafe { sys::cuMemFree_v2(at) })
    }

    /// Bytes free and in all.
    pub(crate) fn memory(&self) -> Result<(usize, usize)> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both outlive the call.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free, total))
    }

    /// Fills memory, in stream order.
    ///
    /// # Safety
    /// The range is inside an allocation that lives until the work is done.
    pub(crate) unsafe fn fill(&self, at: Address, byte: u8, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: by contract.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(at, byte, bytes, self.stream) })
    }

    /// Copies from the host, in stream order; `src` may change as soon as this returns.
    ///
    /// # Safety
    /// The range at `dst` is inside an allocation that lives until the work is done, and `src` is pageable memory.
    pub(crate) unsafe fn upload(&self, src: &[u8], dst: Address) -> Result<()> {
        self.bind()?;
        // SAFETY: the range at `dst` is valid by contract. A copy from pageable memory returns when the source was read.
        check("cuMemcpyHtoDAsync", unsafe {
            sys::cuMemcpyHtoDAsync_v2(dst, src.as_ptr().cast(), src.len(), self.stream)
        })
    }

    /// Copies to the host, after all submitted work, and waits.
    ///
    /// # Safety
    /// The range at `src` is inside an allocation.
    pub(crate) unsafe fn download(&self, src: Address, dst: &mut [u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: `src` is valid by contract; `dst` is exclusive and outlives the wait below.
        let copied = check("cuMemcpyDtoHAsync", unsafe {
            sys::cuMemcpyDtoHAsync_v2(dst.as_mut_ptr().cast(), src, dst.len(), self.stream)
        });
        // Also after a failure: nothing may write to `dst` once this returns.
        self.synchronize().and(copied)
    }

    /// Copies inside the device's memory, in stream order.
    ///
    /// # Safety
    /// Both ranges are inside allocations that live until the work is done, and do not overlap.
    pub(crate) unsafe fn copy(&self, src: Address, dst: Address, bytes: usize) -> Result<()> {
        self.bind()?;
        // SAFETY: by contract.
        check("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(dst, src, bytes, self.stream) })
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

    /// Makes a graph of launches, each after the one before it, and runs none.
    ///
    /// # Safety
    /// As for [`Driver::launch`].
    pub(crate) unsafe fn record(&self, launches: &mut [Launch]) -> Result<Graph> {
        self.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let mut g = Graph { graph: std::ptr::null_mut(), exec: std::ptr::null_mut(), nodes: Vec::new() };
        // On a stream of its own: other threads may go on using the other one.
        // SAFETY: the stream is ours.
        check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(self.recorder, mode) })?;
        let captured = launches.iter_mut().try_for_each(|launch| {
            // SAFETY: by contract; captured work does not run now.
            unsafe { self.launch_on(self.recorder, launch, self.overlaps) }?;
            g.nodes.push(self.last_node()?);
            Ok(())
        });
        // Also after a failure: the capture has to end.
        // SAFETY: the stream is ours, and capturing.
        let ended = check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(self.recorder, &mut g.graph) });
        let made = captured.and(ended).and_then(|()| {
            // SAFETY: the graph was just made.
            check("cuGraphInstantiate", unsafe { sys::cuGraphInstantiateWithFlags(&mut g.exec, g.graph, 0) })
        });
        match made {
            Ok(()) => Ok(g),
            Err(e) => {
                self.destroy_graph(g);
                Err(e)
            }
        }
    }

    /// The node that was captured last.
    fn last_node(&self) -> Result<sys::CUgraphNode> {
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        let (mut id, mut graph, mut nodes, mut count) = (0, std::ptr::null_mut(), std::ptr::null(), 0);
        // SAFETY: all pointers are to locals that outlive the call.
        let code = unsafe {
            sys::cuStreamGetCaptureInfo_v2(self.recorder, &mut status, &mut id, &mut graph, &mut nodes, &mut count)
        };
        check("cuStreamGetCaptureInfo", code)?;
        if count != 1 || nodes.is_null() {
            let message = format!("a captured launch has {count} nodes");
            return Err(Error::Device { backend: ID.into(), message });
        }
        // SAFETY: the driver gave an array of `count` nodes, valid until the next capturing call.
        Ok(unsafe { *nodes })
    }

    /// Changes the arguments of one kernel of a graph.
    ///
    /// # Safety
    /// As for [`Driver::launch`]; the launch is the graph's, but for its arguments.
    pub(crate) unsafe fn set_arguments(&self, graph: &Graph, index: usize, launch: &mut Launch) -> Result<()> {
        self.bind()?;
        let Grid { x, y, threads, shared } = launch.grid;
        let mut pointers = launch.args.pointers();
        let params = sys::CUDA_KERNEL_NODE_PARAMS {
            func: self.functions[launch.kernel as usize],
            gridDimX: x,
            gridDimY: y,
            gridDimZ: 1,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared,
            kernelParams: pointers.as_mut_ptr(),
            extra: std::ptr::null_mut(),
            kern: std::ptr::null_mut(),
            ctx: std::ptr::null_mut(),
        };
        // SAFETY: the node is of the graph that was instantiated; arguments are copied by the call.
        check("cuGraphExecKernelNodeSetParams", unsafe {
            sys::cuGraphExecKernelNodeSetParams_v2(graph.exec, graph.nodes[index], &params)
        })
    }

    /// Runs a graph, in stream order.
    ///
    /// # Safety
    /// As for [`Driver::launch`], for every launch of it.
    pub(crate) unsafe fn launch_graph(&self, graph: &Graph) -> Result<()> {
        self.bind()?;
        // SAFETY: by contract.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(graph.exec, self.stream) })
    }

    /// Gives a graph back.
    pub(crate) fn destroy_graph(&self, graph: Graph) {
        // SAFETY: the handles are null or ours, and used no more; a graph that still runs is kept by the driver until it is
        // done. A failure leaves nothing to be done.
        unsafe {
            if !graph.exec.is_null() {
                let _ = sys::cuGraphExecDestroy(graph.exec);
            }
            if !graph.graph.is_null() {
                let _ = sys::cuGraphDestroy(graph.graph);
            }
        }
    }

    /// A word of host memory that kernels can write; see [`HostWord`].
    pub(crate) fn host_word(&self) -> Result<HostWord> {
        self.bind()?;
        let mut at = std::ptr::null_mut();
        // SAFETY: `at` outlives the call. Flag 2 maps the memory for the device.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut at, 4096, 2) })?;
        let mut address = 0;
        // SAFETY: `at` was just allocated, mapped.
        let mapped = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut address, at, 0) };
        let word = HostWord { at: at.cast(), address };
        check("cuMemHostGetDevicePointer", mapped)?;
        word.set(0);
        Ok(word)
    }

    /// Gives a word back. All work is done.
    pub(crate) fn free_host_word(&self, word: &HostWord) {
        // SAFETY: it came from `host_word` of this driver and no work is left that could use it. A failure to free leaves
        // nothing to be done.
        let _ = unsafe { sys::cuMemFreeHost(word.at.cast()) };
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // After a device error each of these fails too, and there is nobody to tell.
        if self.bind().is_ok() {
            // SAFETY: handles are null or ours, and used no more.
            unsafe {
                if !self.stream.is_null() {
                    let _ = sys::cuStreamSynchronize(self.stream);
                    let _ = sys::cuStreamDestroy_v2(self.stream);
                }
                if !self.recorder.is_null() {
                    let _ = sys::cuStreamDestroy_v2(self.recorder);
                }
                if !self.module.is_null() {
                    let _ = sys::cuModuleUnload(self.module);
                }
            }
        }
        if !self.context.is_null() {
            // SAFETY: it was retained once, by `open`.
            let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
        }
    }
}

/// A word of host memory that kernels can write.
#[derive(Debug)]
pub(crate) struct HostWord {
    at: *mut u32,
    /// Where kernels see it.
    pub(crate) address: Address,
}

// SAFETY: it is memory like any other; reads and writes below are volatile, because kernels write it too.
unsafe impl Send for HostWord {}

impl HostWord {
    pub(crate) fn get(&self) -> u32 {
        // SAFETY: the memory is ours until it is freed, and aligned to a page.
        unsafe { self.at.read_volatile() }
    }
    pub(crate) fn set(&self, value: u32) {
        // SAFETY: as above.
        unsafe { self.at.write_volatile(value) }
    }
}
