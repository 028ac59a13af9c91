//! What must hold at the boundary: panics, poison, cancellation, kept codes, versions, hostile tables.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests; their helpers are not marked as such")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tersor_abi::host::{LoadError, Plugin};
use tersor_abi::raw::*;
use tersor_conformance::Threads;
use tersor_core::{
    BackendEntry, BackendInfo, Bytes, Checked, DeviceInfo, DeviceKind, Error, Format, HostContext, In, Op, OpSpec, Out,
    PackTag, PackedWeight, Probe, QuantBackend, Ran, RawBuffer, Result, Shape, Stream, Support, Weight,
};

fn device() -> DeviceInfo {
    DeviceInfo { index: 0, kind: DeviceKind::Cpu, name: "a CPU \u{2713}".into(), isas: vec![], memory: None }
}

/// Copies, panics on a length of 13, and keeps the codes of what it packs where it may.
#[derive(Debug)]
struct Odd {
    info: BackendInfo,
    host: HostContext,
}

static KEEP: AtomicBool = AtomicBool::new(false);
static FREED: AtomicUsize = AtomicUsize::new(0);
/// Held by tests that pack.
static PACKING: Mutex<()> = Mutex::new(());

struct Data(Option<Bytes>);
impl Drop for Data {
    fn drop(&mut self) {
        FREED.fetch_add(1, Ordering::SeqCst);
        if let Some(codes) = &self.0 {
            assert_eq!(codes[0], 0b0101_0101, "the host kept what the pack uses");
        }
    }
}

impl QuantBackend for Odd {
    fn info(&self) -> &BackendInfo {
        &self.info
    }
    fn supports(&self, spec: &OpSpec) -> Support {
        match spec {
            OpSpec::Copy { .. } => Support::Yes { kernel: "copy.f32.odd" },
            OpSpec::Add { .. } => panic!("asked about an addition"),
            _ => Support::no("odd"),
        }
    }
    fn packed_size(&self, _: Format, shape: Shape) -> Result<usize> {
        Ok(shape.len())
    }
    fn pack(&self, w: &Weight) -> Result<PackedWeight> {
        let kept = KEEP.load(Ordering::SeqCst).then(|| w.shared_codes());
        let tag = PackTag { backend: "odd".into(), packing: "odd" };
        // It says that it copied, whatever it did: the boundary must not believe it.
        Ok(PackedWeight::new(tag, w, 1, false, Arc::new(Data(kept))))
    }
    fn alloc(&self, bytes: usize) -> Result<RawBuffer> {
        Ok(RawBuffer::host(bytes))
    }
    fn open_stream(&self) -> Result<Box<dyn Stream>> {
        Ok(Box::new(OddStream(self.host.clone())))
    }
}

struct OddStream(HostContext);
impl Stream for OddStream {
    fn submit(&mut self, op: Checked<'_>) -> Result<Ran> {
        if self.0.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let Op::Copy { x: In::Host(x), y: Out::Host(y) } = op.op() else {
            return Err(Error::Unsupported { backend: "odd".into(), op: "it".into(), reason: "odd".into() });
        };
        let at = |i: usize| {
            if x.len() == 13 && i == 2 {
                panic!("thirteen \u{2713}{}", "x".repeat(2000))
            }
        };
        self.0.executor().run(4, &at);
        y.copy_from_slice(x);
        Ok(Ran { kernel: "copy.f32.odd" })
    }
    fn synchronize(&mut self) -> Result<()> {
        Ok(())
    }
}

static ODD: BackendEntry = BackendEntry {
    id: "odd",
    version: "1",
    kernel_revision: 7,
    priority: -3,
    probe: || Probe::Usable { devices: vec![device()] },
    open: |host| {
        let id = "odd".into();
        let info = BackendInfo { id, version: "1".into(), kernel_revision: 7, device: device(), isa: None };
        Ok(Arc::new(Odd { info, host: host.clone() }))
    },
};
static BROKEN: BackendEntry = BackendEntry {
    id: "broken",
    version: "1",
    kernel_revision: 0,
    priority: 0,
    probe: || panic!("probing"),
    open: |_| panic!("opening"),
};
tersor_abi::export_backend!(&ODD, &BROKEN);

fn plugin() -> Plugin {
    // SAFETY: our own symbol.
    unsafe { Plugin::connect(tersor_plugin_v1) }.unwrap()
}

fn odd(threads: usize) -> (Arc<dyn QuantBackend>, HostContext) {
    let host = HostContext::new(Arc::new(Threads::new(threads)));
    (plugin().backends[0].open(&host).unwrap(), host)
}

fn copy(stream: &mut dyn Stream, n: usize) -> Result<Ran> {
    let (x, mut y) = (vec![1.5; n], vec![0.0; n]);
    let ran = stream.submit(Op::Copy { x: In::Host(&x), y: Out::Host(&mut y) }.check()?)?;
    assert_eq!(x, y);
    Ok(ran)
}

#[test]
fn a_panic_in_a_task_is_an_error_and_poisons_its_instance_only() {
    let ((bad, _), (good, _)) = (odd(3), odd(1));
    let (mut a, mut b) = (bad.open_stream().unwrap(), good.open_stream().unwrap());
    assert_eq!(copy(&mut *a, 12).unwrap().kernel, "copy.f32.odd");
    let e = copy(&mut *a, 13).unwrap_err().to_string();
    assert!(e.contains("panicked") && e.contains("thirteen \u{2713}xxx") && e.ends_with('…'), "{e}");
    let e = copy(&mut *a, 12).unwrap_err().to_string();
    assert!(e.contains("poisoned") && e.contains("an earlier call panicked: thirteen"), "{e}");
    assert!(bad.open_stream().is_err());
    copy(&mut *b, 12).unwrap();
}

#[test]
fn a_panic_in_a_question_is_a_no_with_its_message() {
    let Support::No { reason } = odd(1).0.supports(&OpSpec::Add { len: 3 }) else { panic!("yes") };
    assert!(reason.contains("asked about an addition"), "{reason}");
}

#[test]
fn a_panic_in_probe_and_open_stays_on_its_side() {
    let broken = plugin().backends[1];
    assert!(matches!(broken.probe(), Probe::Unusable { reason } if reason.contains("probing")));
    assert!(broken.open(&HostContext::inline()).unwrap_err().to_string().contains("opening"));
}

#[test]
fn cancelling_reaches_the_plugin_and_ends() {
    let (backend, host) = odd(1);
    let mut stream = backend.open_stream().unwrap();
    host.cancel();
    assert_eq!(copy(&mut *stream, 5).unwrap_err(), Error::Cancelled);
    host.resume();
    copy(&mut *stream, 5).unwrap();
}

#[test]
fn what_crosses_is_who_it_is_and_what_it_runs_on() {
    let (backend, _) = odd(1);
    assert_eq!((backend.info().id.as_ref(), backend.info().kernel_revision), ("odd", 7));
    assert_eq!(backend.info().device, device());
    assert_eq!(plugin().backends[0].priority, -3);
}

#[test]
fn codes_that_a_pack_uses_are_kept_whatever_the_backend_says() {
    let _alone = PACKING.lock().unwrap_or_else(PoisonError::into_inner);
    for keep in [false, true] {
        KEEP.store(keep, Ordering::SeqCst);
        let (backend, _) = odd(1);
        let shape = Shape::new(1, 128).unwrap();
        // An owner that wipes its bytes when it goes, as unmapping would.
        let mut bytes = vec![0b0101_0101; 64];
        bytes[32..].copy_from_slice(&[&1f32.to_le_bytes()[..], &[0; 28]].concat());
        let weight = Weight::new(Format::I2S, shape, Bytes::from_owner(Wiped(bytes)), Vec::new()).unwrap();
        let packed = backend.pack(&weight).unwrap();
        assert_eq!(packed.borrowed(), keep);
        drop(weight);
        let freed = FREED.load(Ordering::SeqCst);
        drop(backend);
        drop(packed);
        assert_eq!(FREED.load(Ordering::SeqCst), freed + 1, "the pack was freed, once");
    }
}

struct Wiped(Vec<u8>);
impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
impl Drop for Wiped {
    fn drop(&mut self) {
        self.0.fill(0xff);
    }
}

#[test]
fn a_pack_of_another_instance_is_foreign() {
    let _alone = PACKING.lock().unwrap_or_else(PoisonError::into_inner);
    KEEP.store(false, Ordering::SeqCst);
    let ((a, _), (b, _)) = (odd(1), odd(1));
    let weight = Weight::dense(Format::F32, Shape::new(2, 2).unwrap(), vec![0; 16]).unwrap();
    let packed = a.pack(&weight).unwrap();
    // Whoever shares packs among those of one tag, as the tuner does, shares none of these.
    assert_ne!(packed.tag(), b.pack(&weight).unwrap().tag());
    let mut y = [0.0; 2];
    let gather = |b: &dyn QuantBackend, y: &mut [f32]| {
        let op = Op::GatherRows { table: &packed, ids: In::Host(&[1]), y: Out::Host(y) };
        b.open_stream()?.submit(op.check()?)
    };
    assert!(matches!(gather(&*b, &mut y), Err(Error::ForeignPack { .. })));
    assert!(matches!(gather(&*a, &mut y), Err(Error::Unsupported { .. })));
}

type Make = fn() -> (i32, *const TersorPlugin);

/// Hands out a table of the test's own making.
fn connect(make: Make) -> Result<Plugin, LoadError> {
    use std::cell::Cell;
    thread_local!(static MAKE: Cell<Option<Make>> = const { Cell::new(None) });
    unsafe extern "C" fn symbol(_: *const TersorHost, out: *mut *const TersorPlugin) -> i32 {
        let (status, table) = MAKE.get().unwrap()();
        // SAFETY: the host hands over memory to be written.
        unsafe { *out = table };
        status
    }
    MAKE.set(Some(make));
    // SAFETY: our own symbol; its tables are leaked.
    unsafe { Plugin::connect(symbol) }
}

/// The tables of the real plugin, changed.
fn changed(change: impl FnOnce(&mut TersorPlugin, &mut TersorBackend)) -> *const TersorPlugin {
    let mut table = std::ptr::null();
    let host = TersorHost {
        struct_size: size_of::<TersorHost>() as u32,
        abi_minor: 0,
        ctx: std::ptr::null_mut(),
        log: None,
        threads: None,
        parallel_for: None,
        is_cancelled: None,
        extension: None,
    };
    // SAFETY: our own symbol and tables, which are static.
    let (mut plugin, mut backend) = unsafe {
        assert_eq!(tersor_plugin_v1(&host, &mut table), TERSOR_OK);
        (*table, **(*table).backends)
    };
    change(&mut plugin, &mut backend);
    if plugin.backend_count == 2 && !plugin.backends.is_null() {
        plugin.backends = Box::leak(Box::new(std::ptr::from_ref(Box::leak(Box::new(backend)))));
        plugin.backend_count = 1;
    }
    Box::leak(Box::new(plugin))
}

#[test]
fn hostile_tables_are_refused_each_with_its_own_error() {
    type Case = (Make, &'static str);
    let cases: [Case; 10] = [
        (|| (TERSOR_OK, std::ptr::null()), "TersorPlugin is null"),
        (|| (TERSOR_OK, changed(|p, _| p.struct_size = 8)), "TersorPlugin says that it has 8 bytes"),
        (|| (TERSOR_OK, changed(|_, b| b.struct_size = 100)), "TersorBackend says that it has 100 bytes"),
        (|| (TERSOR_OK, changed(|_, b| b.submit = None)), "the function submit is null"),
        (|| (TERSOR_OK, changed(|p, _| p.backend_count = 0)), "lists 0 backends"),
        (|| (TERSOR_OK, changed(|p, _| p.backend_count = u64::MAX)), "from 1 to 64"),
        (|| (TERSOR_OK, changed(|p, _| p.backends = std::ptr::null())), "backends"),
        (|| (TERSOR_OK, changed(|_, b| b.id.data = c"Evil/../x".as_ptr())), "is none"),
        (|| (TERSOR_OK, changed(|_, b| b.version.len = u64::MAX)), "a backend's version is no UTF-8 text"),
        (|| (4711, std::ptr::null()), "status 4711 (internal, a number that this host does not know)"),
    ];
    for (make, expected) in cases {
        let e = connect(make).unwrap_err().to_string();
        assert!(e.contains(expected), "{e:?} should contain {expected:?}");
    }
    assert!(connect(|| (TERSOR_OK, changed(|_, _| {}))).is_ok(), "unchanged, it is accepted");
}

#[test]
fn a_newer_plugin_with_longer_tables_is_read_up_to_what_is_known() {
    #[repr(C)]
    struct Longer<T>(T, [u64; 4]);
    fn make() -> (i32, *const TersorPlugin) {
        // SAFETY: our own tables, which are leaked.
        let (mut plugin, mut backend) = unsafe {
            let plugin = *changed(|_, _| {});
            (plugin, **plugin.backends)
        };
        backend.struct_size = size_of::<Longer<TersorBackend>>() as u32;
        let backend = Box::leak(Box::new(Longer(backend, [u64::MAX; 4])));
        plugin.backends = Box::leak(Box::new(std::ptr::from_ref(&backend.0)));
        plugin.struct_size = size_of::<Longer<TersorPlugin>>() as u32;
        plugin.abi_minor = 99;
        (TERSOR_OK, &Box::leak(Box::new(Longer(plugin, [u64::MAX; 4]))).0)
    }
    let plugin = connect(make).unwrap();
    assert_eq!(plugin.abi_minor, 99);
    let backend = plugin.backends[0].open(&HostContext::inline()).unwrap();
    copy(&mut *backend.open_stream().unwrap(), 9).unwrap();
}

#[test]
fn a_newer_host_with_longer_structs_is_served_and_an_older_one_refused() {
    #[repr(C)]
    struct Longer<T>(T, [u64; 4]);
    let plugin = changed(|_, _| {});
    // SAFETY: our own tables and functions, called as the contract says, with structs that are a field longer.
    unsafe {
        let (own, table) = (*(*plugin).backends, **(*plugin).backends);
        let mut host = Longer(
            TersorHost {
                struct_size: size_of::<Longer<TersorHost>>() as u32,
                abi_minor: 9,
                ctx: std::ptr::null_mut(),
                log: None,
                threads: None,
                parallel_for: None,
                is_cancelled: None,
                extension: None,
            },
            [u64::MAX; 4],
        );
        let options = TersorOptions { struct_size: size_of::<TersorOptions>() as u32, isa: 0 };
        let (mut instance, mut stream) = (std::ptr::null_mut(), std::ptr::null_mut());
        let none = std::ptr::null_mut();
        assert_eq!(table.open.unwrap()(own, &host.0, &options, &mut instance, none), TERSOR_OK);
        assert_eq!(table.open_stream.unwrap()(instance, &mut stream, none), TERSOR_OK);
        let (x, mut y) = ([2.5f32; 4], [0.0f32; 4]);
        let args = TersorCopyOp {
            struct_size: size_of::<Longer<TersorCopyOp>>() as u32,
            reserved: 0,
            x: TersorF32 { data: x.as_ptr(), len: 4 },
            y: TersorF32Mut { data: y.as_mut_ptr(), len: 4 },
        };
        let args = Longer(args, [u64::MAX; 4]);
        let kernel = TersorStr { data: std::ptr::null(), len: 0 };
        let size = size_of::<Longer<TersorRan>>() as u32;
        let mut out = Longer(TersorRan { struct_size: size, flags: 0, kernel }, [7; 4]);
        let submit = table.submit.unwrap();
        assert_eq!(submit(stream, TERSOR_OP_COPY, (&raw const args).cast(), &mut out.0, none), TERSOR_OK);
        assert_eq!((x, out.1, out.0.struct_size), (y, [7; 4], size), "what the plugin does not know is left alone");
        // Unknown op, null operands, misaligned operands, a struct that is too short: statuses, not crashes.
        assert_eq!(submit(stream, 999, (&raw const args).cast(), &mut out.0, none), TERSOR_UNSUPPORTED);
        assert_eq!(submit(stream, TERSOR_OP_COPY, std::ptr::null(), &mut out.0, none), TERSOR_INVALID);
        let bad =
            |data: *const f32, struct_size: u32| TersorCopyOp { struct_size, x: TersorF32 { data, len: 4 }, ..args.0 };
        for bad in [bad(std::ptr::null(), 40), bad(x.as_ptr().byte_add(1), 40), bad(x.as_ptr(), 39)] {
            assert_eq!(submit(stream, TERSOR_OP_COPY, (&raw const bad).cast(), &mut out.0, none), TERSOR_INVALID);
        }
        table.close_stream.unwrap()(stream);
        table.close.unwrap()(instance);
        host.0.struct_size = 16;
        assert_eq!(table.open.unwrap()(own, &host.0, &options, &mut instance, none), TERSOR_ABI_MISMATCH);
        assert_eq!(tersor_plugin_v1(std::ptr::null(), &mut std::ptr::null()), TERSOR_ABI_MISMATCH);
    }
}
