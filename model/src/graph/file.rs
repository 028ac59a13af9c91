//! Model files as sources of weights.

use tersor_core::{Format, QuantBackend, Weight};

use crate::config::ModelConfig;
use crate::error::Result;
use crate::names::Role;
use crate::quantizer::OnBackend;
use crate::source::ModelFile;

use super::weights::TensorSource;

/// A file gives ternary layers in the format that it has. Master weights, and codes from a layout that is no format of
/// ours, become `i2_s`; [`InFormat`] chooses another.
impl TensorSource for ModelFile {
    fn config(&self) -> &ModelConfig {
        ModelFile::config(self)
    }

    fn matrix(&self, role: Role, backend: &dyn QuantBackend) -> Result<Weight> {
        if role.is_linear() { linear(self, role, None, backend) } else { self.dense(role)?.weight() }
    }

    fn norm(&self, role: Role) -> Result<Vec<f32>> {
        self.dense(role)?.to_f32()
    }
}

/// A file whose linear layers are all brought into one ternary format on loading.
#[derive(Debug, Clone, Copy)]
pub struct InFormat<'a> {
    /// The file.
    pub file: &'a ModelFile,
    /// The format of every linear layer.
    pub format: Format,
}

impl TensorSource for InFormat<'_> {
    fn config(&self) -> &ModelConfig {
        self.file.config()
    }

    fn matrix(&self, role: Role, backend: &dyn QuantBackend) -> Result<Weight> {
        if role.is_linear() {
            linear(self.file, role, Some(self.format), backend)
        } else {
            self.file.matrix(role, backend)
        }
    }

    fn norm(&self, role: Role) -> Result<Vec<f32>> {
        self.file.norm(role)
    }
}

/// A linear layer in `wanted`, or in its own format where nothing is wanted and it has one.
fn linear(file: &ModelFile, role: Role, wanted: Option<Format>, backend: &dyn QuantBackend) -> Result<Weight> {
    let weight = file.linear(role)?.to_weight(wanted, &OnBackend(backend));
    weight.map_err(|e| e.in_tensor(file.entry(role).map_or(&role.to_string(), |entry| &entry.name)))
}
