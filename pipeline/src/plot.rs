//! Accuracy against length, as SVG and PNG.

use anyhow::{Context, Result, anyhow};
use epaint_default_fonts::UBUNTU_LIGHT;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};
use resvg::{tiny_skia, usvg};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

/// One model's accuracy by length.
#[derive(Debug, Clone)]
pub struct Series {
    /// Its name in the picture.
    pub label: String,
    /// (length, last-token accuracy), ascending.
    pub points: Vec<(u32, f64)>,
}

/// What to draw.
#[derive(Debug, Clone)]
pub struct Figure {
    /// The headline.
    pub title: String,
    /// A line under it: task, what is measured.
    pub subtitle: String,
    /// Lengths up to here were trained on; shaded.
    pub train_max: Option<u32>,
    /// The accuracy of guessing, dashed.
    pub chance: Option<f64>,
    /// One line each.
    pub series: Vec<Series>,
}

const SIZE: (u32, u32) = (1200, 675);
const FONT: &str = "Ubuntu";
const INK: RGBColor = RGBColor(0x22, 0x26, 0x2e);
const GREY: RGBColor = RGBColor(0x6b, 0x72, 0x80);
const GRID: RGBColor = RGBColor(0xe5, 0xe7, 0xeb);
const SHADE: RGBColor = RGBColor(0xf1, 0xf3, 0xf6);
/// Okabe and Ito's colours, told apart also by colour-blind readers.
static COLOURS: [RGBColor; 6] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
];

/// Lengths that the drawn line averages over, where a sweep has enough of them: a single length is often one sequence,
/// right or wrong.
pub fn smoothing_window(points: usize) -> usize {
    match points {
        0..60 => 1,
        60..300 => 5,
        _ => 25,
    }
}

/// Writes `<stem>.svg` and `<stem>.png`; returns their paths.
pub fn write(figure: &Figure, stem: &Path) -> Result<[PathBuf; 2]> {
    let svg = draw(figure)?;
    let png = rasterise(&svg)?;
    let (svg_path, png_path) = (stem.with_extension("svg"), stem.with_extension("png"));
    data::files::write_bytes(&svg_path, svg.as_bytes())?;
    data::files::write_bytes(&png_path, &png)?;
    Ok([svg_path, png_path])
}

fn draw(figure: &Figure) -> Result<String> {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        let _ = register_font(FONT, FontStyle::Normal, UBUNTU_LIGHT);
    });
    let mut svg = String::new();
    render(figure, SVGBackend::with_string(&mut svg, SIZE)).map_err(|e| anyhow!("cannot draw the plot: {e}"))?;
    Ok(svg.replace(&format!("font-family=\"{FONT}\""), &format!("font-family=\"{FONT}, Helvetica, Arial, sans-serif\"")))
}

type DrawResult<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn render<'a>(figure: &Figure, backend: SVGBackend<'a>) -> DrawResult<'a> {
    let root = backend.into_drawing_area();
    root.fill(&WHITE)?;
    let text = |size: i32, colour: &'static RGBColor| -> TextStyle<'static> {
        TextStyle::from((FONT, size).into_font()).color(colour)
    };
    root.draw(&Text::new(figure.title.clone(), (92, 26), text(34, &INK)))?;
    root.draw(&Text::new(figure.subtitle.clone(), (92, 70), text(20, &GREY)))?;

    let longest = figure.series.iter().flat_map(|s| s.points.last()).map(|p| p.0).max().unwrap_or(1).max(2);
    let right = 40 + 11 * figure.series.iter().map(|s| s.label.chars().count()).max().unwrap_or(0) as u32;
    let mut chart = ChartBuilder::on(&root)
        .margin_top(112)
        .margin_right(right)
        .margin_left(24)
        .margin_bottom(16)
        .x_label_area_size(64)
        .y_label_area_size(68)
        .build_cartesian_2d(0f64..f64::from(longest), -0.02..1.04)?;

    let x_end = f64::from(longest);
    if let Some(train_max) = figure.train_max.map(f64::from).filter(|t| *t < x_end) {
        chart.draw_series([Rectangle::new([(0.0, -0.02), (train_max, 1.04)], SHADE.filled())])?;
    }
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID.stroke_width(1))
        .axis_style(TRANSPARENT)
        .y_labels(6)
        .x_labels(11)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{:.0} %", 100.0 * y))
        .x_desc("test length (counted symbols)")
        .axis_desc_style(text(20, &GREY))
        .label_style(text(18, &GREY))
        .draw()?;

    if let Some(chance) = figure.chance {
        chart.draw_series(DashedLineSeries::new([(0.0, chance), (x_end, chance)], 6, 6, GREY.stroke_width(1)))?;
        let style = text(16, &GREY).pos(Pos::new(HPos::Right, VPos::Bottom));
        chart.draw_series([Text::new("guessing", (x_end, chance + 0.008), style)])?;
    }
    let mut taken: Vec<f64> = Vec::new();
    for (series, colour) in figure.series.iter().zip(COLOURS.iter().cycle()) {
        let line = smooth(&series.points);
        let Some(&end) = line.last() else { continue };
        chart.draw_series(LineSeries::new(line, colour.stroke_width(4)))?;
        // Names stand at the ends of their lines, moved up where they would overlap.
        let mut y = end.1;
        while taken.iter().any(|t| (t - y).abs() < 0.055) {
            y += 0.01;
        }
        taken.push(y);
        let at = chart.backend_coord(&(end.0, y));
        let style = text(22, colour).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(series.label.clone(), (at.0 + 12, at.1), style))?;
    }
    if let Some(train_max) = figure.train_max.map(f64::from).filter(|t| *t < x_end) {
        let at = chart.backend_coord(&(train_max, 1.04));
        let style = text(16, &GREY).pos(Pos::new(HPos::Left, VPos::Bottom));
        root.draw(&Text::new(format!("trained up to {train_max}"), (at.0 - 4, at.1 - 4), style))?;
    }
    root.present()
}

/// A centred moving average over [`smoothing_window`] lengths, narrower at the ends.
fn smooth(points: &[(u32, f64)]) -> Vec<(f64, f64)> {
    let half = smoothing_window(points.len()) / 2;
    let mean = |i: usize| {
        let reach = half.min(i).min(points.len() - 1 - i);
        let window = &points[i - reach..=i + reach];
        window.iter().map(|p| p.1).sum::<f64>() / window.len() as f64
    };
    (0..points.len()).map(|i| (f64::from(points[i].0), mean(i))).collect()
}

/// Twice the SVG's size, so that it is sharp on a projector.
fn rasterise(svg: &str) -> Result<Vec<u8>> {
    let mut options = usvg::Options::default();
    let fonts = Arc::make_mut(&mut options.fontdb);
    fonts.load_font_data(UBUNTU_LIGHT.to_vec());
    let family = fonts.faces().next().and_then(|face| face.families.first().map(|(name, _)| name.clone()));
    options.font_family = family.unwrap_or_else(|| FONT.into());
    let tree = usvg::Tree::from_str(svg, &options).context("cannot draw the plot")?;
    let mut pixels = tiny_skia::Pixmap::new(2 * SIZE.0, 2 * SIZE.1).context("no memory for the plot")?;
    resvg::render(&tree, tiny_skia::Transform::from_scale(2.0, 2.0), &mut pixels.as_mut());
    pixels.encode_png().map_err(|e| anyhow!("cannot encode the plot: {e}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_moving_average_keeps_ends_and_means() {
        let points: Vec<(u32, f64)> = (1..=400).map(|l| (l, f64::from(l % 2))).collect();
        let line = smooth(&points);
        assert_eq!((line.len(), line[0], line[399]), (400, (1.0, 1.0), (400.0, 0.0)));
        assert!((line[200].1 - 0.5).abs() < 0.03);
    }

    #[test]
    fn both_files_are_written_and_the_svg_has_text() {
        let dir = tempfile::tempdir().unwrap();
        let points = (1..=100).map(|l| (l, if l <= 50 { 1.0 } else { 0.1 })).collect();
        let figure = Figure {
            title: "A title".into(),
            subtitle: "a subtitle".into(),
            train_max: Some(50),
            chance: Some(0.1),
            series: vec![Series { label: "lstm".into(), points }],
        };
        let [svg, png] = write(&figure, &dir.path().join("sweep")).unwrap();
        assert!(std::fs::read_to_string(svg).unwrap().contains("A title"));
        assert_eq!(&std::fs::read(png).unwrap()[1..4], b"PNG");
    }
}
