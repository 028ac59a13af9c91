//! Recorded sequences of launches.

use cudarc::driver::sys;
use tersor_core::{Error, Result};

use super::{Driver, Grid, check};
use crate::ID;
use crate::batch::Launch;

/// A recorded sequence of launches.
#[derive(Debug)]
pub(crate) struct Graph {
    graph: sys::CUgraph,
    exec: sys::CUgraphExec,
    nodes: Vec<sys::CUgraphNode>,
}

// SAFETY: the handles are the driver's, which may be used from any thread, one at a time.
unsafe impl Send for Graph {}

impl Driver {
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
            check("cuGraphInstantiateWithFlags", unsafe { sys::cuGraphInstantiateWithFlags(&mut g.exec, g.graph, 0) })
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
}
