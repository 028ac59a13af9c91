//! Pictures of the tables: bars of median rates, with a mark at the floor's rate.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::markdown::{SECTIONS, number};
use crate::error::{Error, Result};
use crate::report::{Figure, Measure, Report};

/// A picture to be written.
pub(super) struct Picture {
    pub(super) title: String,
    pub(super) file: String,
    pub(super) svg: String,
}

/// Bars of a picture at most; the tables have the rest.
const MOST: usize = 40;

const WIDTH: u32 = 900;
const BAR: u32 = 20;
const TOP: u32 = 48;
const LABELS: u32 = 330;

/// One picture for inference, one for the largest quantization, one for each of the large products with all threads.
pub(super) fn draw(report: &Report, directory: &Path) -> Result<Vec<Picture>> {
    let threads = report.settings.threads.iter().copied().max().unwrap_or(1);
    let mut pictures = Vec::new();
    for (section, measures, _) in SECTIONS {
        for measure in measures {
            for shape in shapes(report, *measure) {
                let of_shape = |f: &&Figure| {
                    let all = f.threads == threads || measure.is_inference();
                    f.time.is_some() && f.measure == *measure && f.shape == shape && all
                };
                let mut figures: Vec<&Figure> = report.figures.iter().filter(of_shape).collect();
                figures.truncate(MOST);
                let (title, id) = (format!("{section}: {} {shape}", measure.id()), shape.replace(' ', "-"));
                let file = format!("{}-{id}.svg", measure.id());
                let svg = bars(&title, &figures)
                    .map_err(|problem| Error::Drawing { path: directory.join(&file), problem })?;
                pictures.push(Picture { title, file, svg });
            }
        }
    }
    Ok(pictures)
}

/// The shapes worth a picture: those of the most work; all of inference.
fn shapes(report: &Report, measure: Measure) -> Vec<String> {
    let mut shapes: Vec<(&str, f64)> = Vec::new();
    for f in report.figures.iter().filter(|f| f.measure == measure && f.time.is_some()) {
        if !shapes.iter().any(|(s, _)| *s == f.shape) {
            shapes.push((&f.shape, f.work.units));
        }
    }
    shapes.sort_by(|a, b| b.1.total_cmp(&a.1));
    let most = match measure {
        Measure::Gemv | Measure::Gemm => 3,
        Measure::Prefill | Measure::Decode | Measure::DecodeBatch | Measure::Quantize => 1,
        Measure::QuantizeRows | Measure::Dequantize | Measure::Pack => 0,
    };
    shapes.into_iter().take(most).map(|(s, _)| s.to_owned()).collect()
}

fn bars(title: &str, figures: &[&Figure]) -> Result<String, String> {
    let mut svg = String::new();
    let height = TOP + BAR * figures.len() as u32 + 12;
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        paint(&area, title, figures).map_err(|e| e.to_string())?;
        area.present().map_err(|e| e.to_string())?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn paint(area: &Area<'_>, title: &str, figures: &[&Figure]) -> Result<(), Box<dyn std::error::Error>> {
    area.fill(&WHITE)?;
    let unit = figures.first().map_or("", |f| f.measure.unit().0);
    let limit = |f: &Figure| Some(f.work.units / f.floor.as_ref()?.seconds / f.measure.unit().1);
    let most = figures.iter().flat_map(|f| [f.rate(), limit(f)]).flatten().fold(f64::MIN_POSITIVE, f64::max);
    let text = |size: u32| ("sans-serif", size).into_font().color(&BLACK);
    area.draw_text(&format!("{title}, {unit} (line: the floor)"), &text(16), (8, 10))?;
    let room = f64::from(WIDTH - LABELS - 70);
    let x = |rate: f64| LABELS as i32 + (room * rate / most) as i32;
    for (i, f) in figures.iter().enumerate() {
        let top = (TOP + BAR * i as u32) as i32;
        let (middle, bottom) = (top + BAR as i32 / 2, top + BAR as i32 - 4);
        let rate = f.rate().unwrap_or(0.0);
        let label = format!("{} {} {}t", f.format, f.candidate(), f.threads);
        area.draw_text(&label, &text(13), (8, middle - 7))?;
        let colour = color_of(&f.candidate());
        area.draw(&Rectangle::new([(LABELS as i32, top), (x(rate), bottom)], colour.filled()))?;
        area.draw_text(&number(rate), &text(12), (x(rate) + 5, middle - 7))?;
        if let Some(limit) = limit(f) {
            area.draw(&PathElement::new([(x(limit), top - 1), (x(limit), bottom + 1)], BLACK.stroke_width(2)))?;
        }
    }
    Ok(())
}

/// The same candidate has the same colour in every picture. Apart for eyes that confuse red and green.
fn color_of(candidate: &str) -> RGBColor {
    const COLOURS: [RGBColor; 7] = [
        RGBColor(0, 114, 178),
        RGBColor(230, 159, 0),
        RGBColor(0, 158, 115),
        RGBColor(204, 121, 167),
        RGBColor(86, 180, 233),
        RGBColor(213, 94, 0),
        RGBColor(150, 150, 150),
    ];
    let sum: usize = candidate.bytes().fold(0, |h, b| h * 31 % 8191 + usize::from(b));
    COLOURS[sum % COLOURS.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::example;

    #[test]
    fn pictures_name_what_they_show() {
        let pictures = draw(&example(), Path::new("x")).unwrap();
        let gemv = pictures.iter().find(|p| p.file == "gemv-1x2560x2560.svg").unwrap();
        assert!(gemv.svg.contains("<svg") && gemv.svg.contains("cpu-avx2.avx-vnni 2t"), "{}", gemv.svg);
        assert!(pictures.iter().any(|p| p.file == "decode-64-tokens.svg"));
    }

    #[test]
    fn a_report_without_figures_has_no_pictures() {
        let mut r = example();
        r.figures.clear();
        assert!(draw(&r, Path::new("x")).unwrap().is_empty());
    }
}
