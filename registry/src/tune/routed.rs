//! A backend made of backends: each product goes to the one that won it, and each other op that another than the first won.
//!
//! A weight is packed once, by one member; one row and many rows of it share that packing. So what is chosen for a weight
//! class is a *packing*, the one whose best members lose least over all measured numbers of rows, and within it a member for
//! each range of rows. All members are host backends that compute the same bits; what is chosen changes speed only.
//!
//! Who runs is looked up once per op in a table of a few entries, never per row.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tersor_core::{
    BackendInfo, Checked, Epilogue, Error, Format, HostContext, Op, OpSpec, PackTag, PackedWeight, QuantBackend, Ran,
    RawBuffer, Result, Shape, Stream, Support, Weight,
};

use super::candidate::Contender;
use super::key::{Key, Product, RowBucket, Task, WeightClass};
use super::tuner::{Effort, Tuner};

/// The choice for one weight class.
#[derive(Debug, Clone)]
pub(super) struct ClassPlan {
    pub(super) class: WeightClass,
    /// Who packs.
    pub(super) owner: usize,
    /// What it then says of itself.
    pub(super) tag: PackTag,
    /// Who can use that packing, in the fixed order.
    pub(super) group: Vec<usize>,
    /// Who runs, by [`slot`]; `None` where nothing was decided, and the first of the group runs.
    pub(super) members: Vec<Option<usize>>,
}

impl ClassPlan {
    pub(super) fn new(class: WeightClass, owner: usize, tag: PackTag, group: Vec<usize>) -> Self {
        ClassPlan { class, owner, tag, group, members: vec![None; 2 * RowBucket::COUNT] }
    }

    fn member(&self, slot: usize) -> usize {
        self.members.get(slot).copied().flatten().unwrap_or_else(|| self.group.first().copied().unwrap_or(self.owner))
    }
}

/// The place of a product in [`ClassPlan::members`].
pub(super) fn slot(m: usize, epilogue: Epilogue) -> usize {
    2 * RowBucket::of(m).index() + usize::from(epilogue == Epilogue::Add)
}

/// Who does what.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    pub(super) classes: Vec<ClassPlan>,
    /// Who does an op that is no product, by [`Task::bucket`]; only where that is not the first member.
    pub(super) tasks: Vec<(OpSpec, usize)>,
}

impl Table {
    fn class(&self, class: WeightClass) -> Option<&ClassPlan> {
        self.classes.iter().find(|p| p.class == class)
    }

    fn task(&self, spec: &OpSpec) -> Option<usize> {
        // Usually the first member does all of them, and then nothing is looked up.
        if self.tasks.is_empty() {
            return None;
        }
        let bucket = Task::bucket(spec)?;
        self.tasks.iter().find(|(of, _)| *of == bucket).map(|(_, member)| *member)
    }
}

/// The plans of a backend and all its streams. Changes are rare: a new weight class, a member that failed.
#[derive(Debug)]
pub(super) struct Plans {
    table: Mutex<Arc<Table>>,
    version: AtomicU64,
}

impl Plans {
    pub(super) fn new(table: Table) -> Self {
        Plans { table: Mutex::new(Arc::new(table)), version: AtomicU64::new(0) }
    }

    fn get(&self) -> (u64, Arc<Table>) {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        (self.version.load(Ordering::Acquire), table.clone())
    }

    fn change(&self, change: impl FnOnce(&mut Table)) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut table));
        self.version.fetch_add(1, Ordering::Release);
    }
}

/// The backend.
#[derive(Debug, Clone)]
pub struct Routed {
    info: BackendInfo,
    members: Arc<Vec<Contender>>,
    /// Who does what no plan names.
    default: usize,
    plans: Arc<Plans>,
    tuner: Arc<Tuner>,
    /// Whether what is missing is measured when it is first used.
    on_miss: bool,
    threads: usize,
}

impl Routed {
    /// Its id, where it hands work to more than one backend.
    pub const ID: &'static str = "tuned";

    pub(super) fn new(
        members: Vec<Contender>,
        plans: Plans,
        tuner: Arc<Tuner>,
        on_miss: bool,
        host: &HostContext,
    ) -> Option<Self> {
        let first = members.first()?.backend.info();
        // A backend that is asked for by name keeps its name, whichever of its tiers and thread counts does what.
        let info = if members.iter().all(|m| m.backend.info().id == first.id) {
            first.clone()
        } else {
            let (version, device) = (env!("CARGO_PKG_VERSION").into(), first.device.clone());
            BackendInfo { id: Self::ID.into(), version, kernel_revision: 0, device, isa: None }
        };
        let threads = host.executor().threads();
        let (members, plans) = (Arc::new(members), Arc::new(plans));
        Some(Routed { info, members, default: 0, plans, tuner, on_miss, threads })
    }

    /// The backends it hands work to.
    pub fn members(&self) -> &[Contender] {
        &self.members
    }

    fn plan_of(&self, class: WeightClass) -> Option<ClassPlan> {
        self.plans.get().1.class(class).cloned()
    }

    fn member_for(&self, spec: &OpSpec) -> usize {
        let OpSpec::MatMul { format, scale_block, m, n, k, epilogue, .. } = *spec else {
            return self.plans.get().1.task(spec).unwrap_or(self.default);
        };
        let plan = self.plan_of(WeightClass { format, scale_block, n, k });
        plan.map_or(self.default, |plan| plan.member(slot(m, epilogue)))
    }

    /// Decides who packs a class that no plan foresaw, by a product with one row.
    fn plan_packing(&self, class: WeightClass) {
        let OpSpec::MatMul { activations, output, epilogue, .. } = OpSpec::matmul(class.format, 1, class.n, class.k)
        else {
            return;
        };
        let threads = self.threads;
        let key =
            Key::Product(Product { weight: class, rows: RowBucket::of(1), activations, output, epilogue, threads });
        let resolved = self.tuner.resolve(&[key], &self.members, None, Effort::Missing, |_| ());
        if let Some(plan) = super::select::plan(class, &resolved, &self.members) {
            self.plans.change(|table| {
                if table.class(class).is_none() {
                    table.classes.push(plan);
                }
            });
        }
    }
}

impl QuantBackend for Routed {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    fn supports(&self, spec: &OpSpec) -> Support {
        match self.members.get(self.member_for(spec)) {
            Some(member) => member.backend.supports(spec),
            None => Support::no("it has no members"),
        }
    }

    fn follows_order(&self, spec: &OpSpec) -> bool {
        self.members.get(self.member_for(spec)).is_none_or(|member| member.backend.follows_order(spec))
    }

    fn packed_size(&self, format: Format, shape: Shape) -> Result<usize> {
        self.members[self.default].backend.packed_size(format, shape)
    }

    fn pack(&self, weight: &Weight) -> Result<PackedWeight> {
        let (format, shape) = (weight.format(), weight.shape());
        let scale_block = if weight.uniform_scale().is_some() { None } else { format.scale_block() };
        let class = WeightClass { format, scale_block, n: shape.rows(), k: shape.cols() };
        if self.on_miss && self.plan_of(class).is_none() {
            self.plan_packing(class);
        }
        let owner = self.plan_of(class).map_or(self.default, |plan| plan.owner);
        self.members[owner].backend.pack(weight)
    }

    fn alloc(&self, bytes: usize) -> Result<RawBuffer> {
        self.members[self.default].backend.alloc(bytes)
    }

    fn open_stream(&self) -> Result<Box<dyn Stream>> {
        let streams = self.members.iter().map(|m| m.backend.open_stream()).collect::<Result<_>>()?;
        let (version, plans) = self.plans.get();
        Ok(Box::new(RoutedStream { backend: self.clone(), streams, plans, version }))
    }
}

struct RoutedStream {
    backend: Routed,
    streams: Vec<Box<dyn Stream>>,
    /// This stream's copy of the plans, renewed when their version changes.
    plans: Arc<Table>,
    version: u64,
}

impl RoutedStream {
    fn route(&mut self, op: &Checked<'_>) -> usize {
        if self.backend.plans.version.load(Ordering::Acquire) != self.version {
            (self.version, self.plans) = self.backend.plans.get();
        }
        let w = match op.get() {
            Op::MatMul { w, .. } => *w,
            // A table serves as a head too, and was packed for that.
            Op::GatherRows { table, .. } => return self.made(table.tag()).next().unwrap_or(self.backend.default),
            _ => return self.plans.task(&op.spec()).unwrap_or(self.backend.default),
        };
        let OpSpec::MatMul { m, n, k, epilogue, format, scale_block, .. } = op.spec() else {
            return self.backend.default;
        };
        let class = WeightClass { format, scale_block, n, k };
        match self.plans.class(class) {
            Some(plan) if plan.tag == *w.tag() => plan.member(slot(m, epilogue)),
            // Packed before the plan was made, or for no plan: by whoever says so.
            _ => self.made(w.tag()).next().unwrap_or(self.backend.default),
        }
    }

    /// Who made packings like this.
    fn made<'a>(&'a self, tag: &'a PackTag) -> impl Iterator<Item = usize> + 'a {
        let members = self.backend.members.iter().enumerate();
        members.filter(|(_, member)| member.backend.info().id == tag.backend).map(|(i, _)| i)
    }

    /// A member failed at what it was chosen for: it is struck out, and another that can do it does it.
    #[cold]
    fn fall_back(&mut self, failed: usize, mut op: Checked<'_>, error: Error) -> Result<Ran> {
        let spec = op.spec();
        if !is_its_own(&error) {
            return Err(error);
        }
        let name = |member: usize| self.backend.members.get(member).map(Contender::name).unwrap_or_default();
        if let Some(key) = Key::of(&spec, self.backend.threads) {
            self.backend.tuner.strike(&key, &name(failed), &error.to_string());
        }
        let others = match op.get() {
            Op::GatherRows { table, .. } => self.made(table.tag()).collect(),
            Op::MatMul { w, .. } => {
                let class = Product::of(&spec, 0).map(|product| product.weight);
                let plan = self.plans.classes.iter().find(|p| p.tag == *w.tag() && class == Some(p.class));
                plan.map_or(Vec::new(), |plan| plan.group.clone())
            }
            _ => (0..self.streams.len()).collect(),
        };
        if !can_fall_back(&error, &spec) {
            return Err(error);
        }
        for other in others.into_iter().filter(|other| *other != failed) {
            if let Ok(ran) = self.streams[other].submit(op.reborrow()) {
                tracing::warn!(from = name(failed), to = name(other), %spec, "fell back");
                self.reroute(&spec, other);
                return Ok(ran);
            }
        }
        Err(error)
    }

    fn reroute(&mut self, spec: &OpSpec, to: usize) {
        let bucket = Task::bucket(spec);
        self.backend.plans.change(|table| {
            if let Some(bucket) = bucket {
                table.tasks.retain(|(of, _)| *of != bucket);
                table.tasks.push((bucket, to));
            }
            let Some(Product { weight, rows, epilogue, .. }) = Product::of(spec, 0) else { return };
            for plan in table.classes.iter_mut().filter(|p| p.class == weight) {
                if let Some(member) = plan.members.get_mut(slot(rows.upper(), epilogue)) {
                    *member = Some(to);
                }
            }
        });
    }
}

/// Whether an error is the backend's and not the caller's.
fn is_its_own(error: &Error) -> bool {
    use Error::{Device, OutOfMemory, Unsupported, Unusable};
    matches!(error, Unsupported { .. } | Unusable { .. } | OutOfMemory { .. } | Device { .. })
}

/// Whether the op left no trace where it failed, so that another may do it.
fn can_fall_back(error: &Error, spec: &OpSpec) -> bool {
    let accumulates = match spec {
        OpSpec::MatMul { epilogue, .. } => *epilogue != Epilogue::Store,
        OpSpec::Add { .. } | OpSpec::Rope { .. } => true,
        _ => false,
    };
    match error {
        // Refused before anything was written.
        Error::Unsupported { .. } | Error::Unusable { .. } | Error::OutOfMemory { .. } => true,
        Error::Device { .. } => !accumulates,
        _ => false,
    }
}

impl Stream for RoutedStream {
    fn submit(&mut self, mut op: Checked<'_>) -> Result<Ran> {
        let member = self.route(&op);
        match self.streams[member].submit(op.reborrow()) {
            Ok(ran) => Ok(ran),
            Err(error) => self.fall_back(member, op, error),
        }
    }

    fn synchronize(&mut self) -> Result<()> {
        self.streams.iter_mut().try_for_each(|s| s.synchronize())
    }
}
