//! Statuses and messages as errors of the core.

use std::ffi::c_char;

use tersor_core::{Error, OpSpec, Result, intern};

use crate::raw::*;

const CAPACITY: usize = 1024;

/// Where a plugin writes its errors. The buffer is ours and always initialized.
pub(super) struct Report {
    error: TersorError,
    buffer: Box<[u8; CAPACITY]>,
}

// SAFETY: the pointer within is to the buffer that the struct owns.
unsafe impl Send for Report {}

impl Report {
    pub(super) fn new() -> Self {
        let mut buffer = Box::new([0; CAPACITY]);
        let message = TersorText { data: buffer.as_mut_ptr().cast::<c_char>(), capacity: CAPACITY as u64, len: 0 };
        let struct_size = size_of::<TersorError>() as u32;
        Report { error: TersorError { struct_size, reserved: 0, index: 0, value: 0.0, reserved2: 0, message }, buffer }
    }

    /// The error to be handed over; set back to what a callee may expect.
    pub(super) fn as_mut(&mut self) -> *mut TersorError {
        self.error.message =
            TersorText { data: self.buffer.as_mut_ptr().cast::<c_char>(), capacity: CAPACITY as u64, len: 0 };
        (self.error.index, self.error.value) = (0, 0.0);
        &mut self.error
    }

    fn message(&self) -> String {
        let len = usize::try_from(self.error.message.len).unwrap_or(CAPACITY);
        let mut text = String::from_utf8_lossy(&self.buffer[..len.min(CAPACITY)]).into_owned();
        if len > CAPACITY {
            text.push('…');
        }
        if text.is_empty() { "the plugin gives no reason".into() } else { text }
    }

    /// `Ok` for success. `during` is what was asked for.
    pub(super) fn check(&self, status: i32, backend: &str, during: &str) -> Result<()> {
        if status == TERSOR_OK {
            return Ok(());
        }
        let (message, backend) = (self.message(), backend.to_owned());
        Err(match status {
            TERSOR_UNSUPPORTED => Error::Unsupported { backend, op: during.to_owned(), reason: message },
            TERSOR_UNUSABLE => Error::Unusable { backend, reason: message },
            TERSOR_CANCELLED => Error::Cancelled,
            TERSOR_NOT_FINITE => {
                Error::NotFinite { what: operand(&message), index: self.error.index as usize, value: self.error.value }
            }
            TERSOR_DEVICE => Error::Device { backend, message },
            TERSOR_PANIC => {
                let message = format!("{during} panicked, and this instance runs nothing more: {message}");
                Error::Device { backend, message }
            }
            other => {
                Error::Device { backend, message: format!("{during}: status {other} ({}): {message}", name(other)) }
            }
        })
    }

    /// The same for an op.
    pub(super) fn check_op(&self, status: i32, backend: &str, spec: &OpSpec) -> Result<()> {
        match (status, spec) {
            (TERSOR_SCALE, OpSpec::Quantize { format, .. }) => {
                Err(Error::Scale { format: *format, scale: self.error.value, reason: intern(self.message()) })
            }
            _ => self.check(status, backend, &spec.to_string()),
        }
    }
}

/// A plugin that breaks the contract.
pub(super) fn broken(backend: &str, what: String) -> Error {
    Error::Device { backend: backend.to_owned(), message: format!("the plugin breaks the ABI: {what}") }
}

/// The operands that kernels judge.
fn operand(name: &str) -> &'static str {
    const KNOWN: [&str; 4] = ["weights", "activations", "logits", "x"];
    KNOWN.into_iter().find(|known| *known == name).unwrap_or("an operand")
}

/// What a status is called.
pub(super) fn name(status: i32) -> &'static str {
    match status {
        TERSOR_OK => "ok",
        TERSOR_UNSUPPORTED => "unsupported",
        TERSOR_INVALID => "invalid argument",
        TERSOR_NOT_FINITE => "not finite",
        TERSOR_SCALE => "scale",
        TERSOR_OUT_OF_MEMORY => "out of memory",
        TERSOR_DEVICE => "device",
        TERSOR_CANCELLED => "cancelled",
        TERSOR_UNUSABLE => "unusable",
        TERSOR_PANIC => "panic",
        TERSOR_POISONED => "poisoned",
        TERSOR_ABI_MISMATCH => "ABI mismatch",
        TERSOR_INTERNAL => "internal",
        _ => "internal, a number that this host does not know",
    }
}
