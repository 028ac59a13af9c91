//! What looks wrong in a model, short of being an error.

use serde::Serialize;
use tersor::core::{Floats, Ternary};
use tersor::model::ModelFile;
use tersor::model::source::{Linear, TensorEntry};

use crate::models::stored_format;
use crate::text;

/// The codes of a ternary tensor in numbers.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Codes {
    /// Share of -1.
    pub(crate) minus: f64,
    /// Share of 0.
    pub(crate) zero: f64,
    /// Share of +1.
    pub(crate) plus: f64,
    /// The scale; null where blocks have different ones.
    pub(crate) scale: Option<f32>,
}

impl Codes {
    fn of(ternary: &Ternary) -> Self {
        let mut counts = [0usize; 3];
        for &code in &ternary.codes {
            counts[usize::from((code + 1).unsigned_abs()).min(2)] += 1;
        }
        let [minus, zero, plus] = counts.map(|n| n as f64 / ternary.codes.len().max(1) as f64);
        Codes { minus, zero, plus, scale: ternary.uniform_scale() }
    }
}

/// What concerns the file as a whole.
pub(crate) fn of_model(model: &ModelFile, found: &mut Vec<String>) {
    if model.tokenizer_json().is_none() {
        found.push("there is no tokenizer in the model or beside it; `tersor run` needs --tokenizer".to_owned());
    }
    if let Some(names) = some_of(model.ignored()) {
        found.push(format!(
            "{} not part of the model and not read: {names}",
            text::count(model.ignored().len(), "tensor")
        ));
    }
    let marked = model.gguf().is_none_or(|file| file.is_row_major().unwrap_or(false));
    let i2_s = model.tensors().any(|t| stored_format(t) == Some(tersor::Format::I2S));
    if i2_s && !marked {
        found.push(
            "the file does not say which layout its i2_s tensors have (no key tersor.layout); they are read as canonical. If \
             the text is nonsense, try --from-layout arm64-block or rows4"
                .to_owned(),
        );
    }
}

fn some_of(names: &[String]) -> Option<String> {
    const MOST: usize = 5;
    let shown: Vec<String> = names.iter().take(MOST).map(|n| text::shown(n, 60)).collect();
    let rest = if names.len() > MOST { ", …" } else { "" };
    (!names.is_empty()).then(|| format!("{}{rest}", shown.join(", ")))
}

/// What concerns one tensor, all of whose values are read. Returns its codes where it is ternary.
pub(crate) fn of_tensor(model: &ModelFile, entry: &TensorEntry, found: &mut Vec<String>) -> Option<Codes> {
    let name = &entry.name;
    if !entry.role.is_linear() {
        match model.dense(entry.role) {
            // Only f32, f16 and bf16 are looked into.
            Ok(dense) => {
                let faulty = dense.with_floats(not_finite).ok().flatten();
                found.extend(faulty.map(|(i, v)| format!("{name}: element {i} is {v}")));
            }
            Err(error) => found.push(error.to_string()),
        }
        return None;
    }
    match model.linear(entry.role) {
        Err(error) => found.push(error.to_string()),
        Ok(Linear::Master(dense)) => {
            let faulty = dense.with_floats(not_finite).ok().flatten();
            found.extend(faulty.map(|(i, v)| format!("{name}: element {i} is {v}; it cannot be quantized")));
        }
        Ok(linear) => match linear.ternary() {
            Ok(Some(ternary)) => {
                let codes = Codes::of(&ternary);
                found.extend(odd(&codes, &ternary.scales).map(|what| format!("{name}: {what}")));
                return Some(codes);
            }
            Ok(None) => {}
            Err(error) => found.push(error.to_string()),
        },
    }
    None
}

/// The first element that is NaN or infinite.
fn not_finite(values: Floats<'_>) -> Option<(usize, f32)> {
    let mut part = vec![0.0; 4096];
    for start in (0..values.len()).step_by(part.len()) {
        let n = part.len().min(values.len() - start);
        values.read(start, &mut part[..n]);
        if let Some(i) = part[..n].iter().position(|v| !v.is_finite()) {
            return Some((start + i, part[i]));
        }
    }
    None
}

/// Trained layers have between a fifth and four fifths of zeros and about as many -1 as +1.
fn odd(codes: &Codes, scales: &[f32]) -> Option<String> {
    if codes.zero == 1.0 {
        return Some("all weights are zero: such uploads exist and are broken".to_owned());
    }
    if codes.zero > 0.95 {
        return Some(format!("{} of the weights are zero", text::percent(codes.zero)));
    }
    if codes.zero == 0.0 {
        return Some("no weight is zero: binary, or read in a wrong layout".to_owned());
    }
    if (codes.plus - codes.minus).abs() > 0.2 {
        let (minus, plus) = (text::percent(codes.minus), text::percent(codes.plus));
        return Some(format!("{minus} are -1 but {plus} are +1: read in a wrong layout?"));
    }
    let scale = scales.iter().find(|s| !s.is_finite() || **s <= 0.0 || **s == 1.0)?;
    Some(match *scale {
        1.0 => "the scale is exactly 1: some converters lose the scale".to_owned(),
        scale => format!("the scale is {scale}; a positive number was expected"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tersor::model::embedded;

    fn codes(minus: f64, zero: f64, plus: f64) -> Codes {
        Codes { minus, zero, plus, scale: Some(0.1) }
    }

    #[test]
    fn the_embedded_model_is_above_suspicion() {
        let model = embedded::fable_26m().unwrap();
        let mut found = Vec::new();
        of_model(&model, &mut found);
        for entry in model.tensors() {
            let codes = of_tensor(&model, entry, &mut found);
            assert_eq!(codes.is_some(), entry.role.is_linear(), "{}", entry.name);
        }
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn broken_layers_are_called_by_their_fault() {
        let odd = |c, scales: &[f32]| super::odd(&c, scales).unwrap_or_default();
        assert!(odd(codes(0.0, 1.0, 0.0), &[0.1]).contains("all weights are zero"));
        assert!(odd(codes(0.01, 0.98, 0.01), &[0.1]).contains("98.0 %"));
        assert!(odd(codes(0.5, 0.0, 0.5), &[0.1]).contains("no weight is zero"));
        assert!(odd(codes(0.5, 0.4, 0.1), &[0.1]).contains("wrong layout"));
        assert!(odd(codes(0.3, 0.4, 0.3), &[1.0]).contains("lose the scale"));
        assert!(odd(codes(0.3, 0.4, 0.3), &[-0.5]).contains("-0.5"));
        assert_eq!(odd(codes(0.3, 0.4, 0.3), &[0.1]), "");
    }

    #[test]
    fn the_first_value_that_is_not_finite_is_found_beyond_the_first_part() {
        let mut values = vec![1.0f32; 10_000];
        assert_eq!(not_finite(Floats::F32(&values)), None);
        values[9_000] = f32::INFINITY;
        assert_eq!(not_finite(Floats::F32(&values)), Some((9_000, f32::INFINITY)));
    }
}
