//! Buffers: zeroed, of any size, readable where they were written, and nobody else's.

use std::any::Any;

use tersor_core::{Buffer, DeviceMemory, DeviceSlice, Error, In, Op, Out};

use super::Case;
use crate::compare::{fail, same};
use crate::rig::{Rig, Verdict};
use crate::suite::Profile;

pub(super) fn cases(_: Profile) -> Vec<Case> {
    vec![
        Case::new("memory/zeroed", zeroed),
        Case::new("memory/round-trip", round_trip),
        Case::new("memory/out-of-range", out_of_range),
        Case::new("memory/foreign-buffer", foreign_buffer),
        Case::new("memory/host-slices-on-a-device", host_slices),
    ]
}

/// New memory is zero, also where old memory was given back.
fn zeroed(rig: &mut Rig<'_>) -> Verdict {
    for len in [0, 1, 3, 63, 64, 65, 1000, 100_000] {
        for _ in 0..3 {
            let mut buffer = Buffer::<u8>::alloc(rig.backend(), len)?;
            if buffer.as_host().is_some() != rig.backend().info().is_host() {
                return fail("a host backend allocates host memory, and a device backend its own");
            }
            let mut image = vec![0x5a; len];
            buffer.read(rig.stream(), 0, &mut image)?;
            same("new memory", len, &image, &vec![0; len])?;
            buffer.write(rig.stream(), &vec![0xa5; len])?;
            rig.stream().synchronize()?;
        }
    }
    Ok(())
}

fn round_trip(rig: &mut Rig<'_>) -> Verdict {
    let data = rig.rng.int8(1001);
    let mut buffer = Buffer::<i8>::alloc(rig.backend(), data.len())?;
    buffer.write(rig.stream(), &data)?;
    for (start, len) in [(0, 1001), (1, 1000), (500, 1), (1000, 1), (333, 64)] {
        let mut out = vec![0x5a; len];
        buffer.read(rig.stream(), start, &mut out)?;
        same(&format!("from element {start} on"), len, &out, &data[start..start + len])?;
    }
    // A second write replaces the first from the start on, and nothing else.
    buffer.write(rig.stream(), &[7i8; 10])?;
    let mut out = vec![0; data.len()];
    buffer.read(rig.stream(), 0, &mut out)?;
    same("after a second write", data.len(), &out, &[&[7i8; 10], &data[10..]].concat())
}

fn out_of_range(rig: &mut Rig<'_>) -> Verdict {
    let mut raw = rig.backend().alloc(100)?;
    for (offset, len) in [(0, 101), (100, 1), (50, 51), (usize::MAX, 1)] {
        if rig.stream().upload(&vec![1; len], &mut raw, offset).is_ok() {
            return fail(format!("{len} bytes were written at byte {offset} of 100"));
        }
        if rig.stream().download(&raw, offset, &mut vec![1; len]).is_ok() {
            return fail(format!("{len} bytes were read at byte {offset} of 100"));
        }
    }
    let mut image = vec![0x5a; 100];
    rig.stream().download(&raw, 0, &mut image)?;
    same("after refused writes", 100, &image, &[0; 100])
}

/// Memory of a device that no backend knows.
#[derive(Debug)]
struct Nowhere;

impl DeviceMemory for Nowhere {
    fn backend(&self) -> &str {
        "conformance-nowhere"
    }
    fn bytes(&self) -> usize {
        1024
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Memory of another backend is an error, not an address.
fn foreign_buffer(rig: &mut Rig<'_>) -> Verdict {
    let memory = Nowhere;
    let slice = |len| DeviceSlice { memory: &memory, offset: 0, len };
    let op = Op::QuantizeRows {
        x: In::Device(slice(64)),
        cols: 64,
        q: Out::Device(slice(64)),
        scales: Out::Device(slice(1)),
    };
    let error = rig.refused(op, "the operands are in memory of another backend")?;
    if matches!(error, Error::Memory { .. }) { Ok(()) } else { fail(format!("not a memory error: {error}")) }
}

/// A device backend refuses host slices: crossings are explicit. (On a host backend slices are the usual operands.)
fn host_slices(rig: &mut Rig<'_>) -> Verdict {
    let x = rig.rng.gaussians(64);
    let (mut q, mut scales) = ([0x5a; 64], [f32::NAN]);
    let op = Op::QuantizeRows { x: In::Host(&x), cols: 64, q: Out::Host(&mut q), scales: Out::Host(&mut scales) };
    if rig.backend().info().is_host() {
        rig.submit(op)?;
        let (want_q, want_s) = crate::oracle::quantize::row(&x).unwrap_or_default();
        same("scales", 1, &scales, &[want_s])?;
        return same("codes", 64, &q, &want_q);
    }
    let error = rig.refused(op, "the operands are host slices and the backend is a device's")?;
    if matches!(error, Error::Memory { .. }) { Ok(()) } else { fail(format!("not a memory error: {error}")) }
}
