//! Accuracy against length, as SVG and PNG.

use crate::cli::endings::appended;
use anyhow::{Context, Result, anyhow};
use data::families::Family;
use epaint_default_fonts::UBUNTU_LIGHT;
use evaluators::LengthResult;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};
use resvg::{tiny_skia, usvg};
use std::collections::HashSet;
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

/// A picture to draw.
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
    /// See [`period`].
    pub period: Option<u32>,
    /// One line each.
    pub series: Vec<Series>,
    /// What the length axis says, see [`length_title`].
    pub x_title: &'static str,
}

const SIZE: (u32, u32) = (1200, 675);
const FONT: &str = "Ubuntu";
/// Text.
pub const INK: RGBColor = RGBColor(0x22, 0x26, 0x2e);
/// Axes and what is said besides.
pub const GREY: RGBColor = RGBColor(0x6b, 0x72, 0x80);
/// Grid lines.
pub const GRID: RGBColor = RGBColor(0xe5, 0xe7, 0xeb);
/// The background of the lengths that were trained on.
pub const SHADE: RGBColor = RGBColor(0xf1, 0xf3, 0xf6);
/// Okabe and Ito's colours, told apart also by colour-blind readers.
pub static COLOURS: [RGBColor; 6] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
];

/// After how many lengths the labels of a task's last tokens repeat, if they do: the modulus of modular counting. A model
/// that guesses is right once in that many lengths, so that only averages over whole periods show what guessing is.
pub fn period(family: &dyn data::Family) -> Option<u32> {
    if family.outside().is_some() {
        return None; // there is no rule that could repeat
    }
    let track = family.track(0, 0, 900);
    let labels: Vec<i16> = track.labels.into_iter().filter(|label| *label >= 0).collect();
    let repeats = |period: &usize| labels.iter().zip(labels.iter().skip(*period)).all(|(a, b)| a == b);
    let period = (1..=labels.len() / 3).find(repeats)?;
    u32::try_from(period).ok().filter(|period| *period > 1)
}

/// Lengths that the drawn line averages over, where a sweep has enough of them: a single length is often one sequence,
/// right or wrong. With a period, the weights of all lengths that have the same label are the same.
pub fn smoothing_window(points: usize, period: Option<u32>) -> usize {
    let window: usize = match points {
        0..60 => 1,
        60..300 => 11,
        _ => 41,
    };
    match period.map(|period| period as usize) {
        Some(period) if points >= 3 * period => 2 * period * (window.div_ceil(2) / period).max(1) - 1,
        _ => window,
    }
}

/// After how many of these lengths labels repeat: the period, or less of it where lengths are left out regularly. `None`
/// where there is no such number.
fn cycle(points: &[(u32, f64)], period: Option<u32>) -> Option<u32> {
    let step = points.get(1)?.0.checked_sub(points.first()?.0).filter(|step| *step > 0)?;
    let regular = points.windows(2).all(|pair| pair[0].0 + step == pair[1].0);
    let cycle = period.filter(|_| regular).map(|period| period / gcd(period, step));
    cycle.filter(|cycle| *cycle > 1)
}

/// The greatest common divisor.
pub fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

// The lists of the models crate, which an evaluator is built without.
#[path = "../../models/src/lists.rs"]
#[macro_use]
#[allow(rustdoc::broken_intra_doc_links)]
mod lists;

macro_rules! titles {
    ($($Variant:ident $module:ident $Type:ident $title:literal;)*) => {
        [$((stringify!($module), $title)),*]
    };
}

/// How people write an architecture and its positional embedding, which may be followed by its augmentation
/// (`rope+shift`).
pub fn display_name(arch: &str, positional_embedding: &str) -> String {
    let title = |titles: &[(&'static str, &'static str)], name| {
        titles.iter().find(|(known, _)| *known == name).map(|(_, title)| *title)
    };
    let (positions, augmentation) = positional_embedding.split_once('+').unwrap_or((positional_embedding, ""));
    let positions = match positions {
        "none" if arch != "transformer" => "",
        name => title(&positions!(titles), name).unwrap_or(name),
    };
    let arch = title(&architectures!(titles), arch).unwrap_or(arch);
    let details: Vec<&str> = [positions, augmentation].into_iter().filter(|text| !text.is_empty()).collect();
    if details.is_empty() { arch.to_owned() } else { format!("{arch} ({})", details.join(", ")) }
}

/// Writes `<stem>.svg` and `<stem>.png`; returns their paths.
pub fn write(figure: &Figure, stem: &Path) -> Result<[PathBuf; 2]> {
    save(&draw(SIZE, |root| render(figure, root))?, stem)
}

/// The files of a picture. The text behind a dot in `stem` is no ending, and stays.
pub fn files(stem: &Path) -> [PathBuf; 2] {
    [appended(stem, ".svg"), appended(stem, ".png")]
}

/// Writes a drawing as `<stem>.svg` and `<stem>.png`; returns their paths.
pub fn save(svg: &str, stem: &Path) -> Result<[PathBuf; 2]> {
    let png = rasterise(svg)?;
    let [svg_path, png_path] = files(stem);
    data::files::write_bytes(&svg_path, svg.as_bytes())?;
    data::files::write_bytes(&png_path, &png)?;
    Ok([svg_path, png_path])
}

/// The result of drawing.
pub type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;
/// The area to draw on.
pub type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The SVG of `size` pixels that `render` draws.
pub fn draw(size: (u32, u32), render: impl FnOnce(&Canvas<'_>) -> Drawn) -> Result<String> {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        let _ = register_font(FONT, FontStyle::Normal, UBUNTU_LIGHT);
    });
    let mut svg = String::new();
    render(&SVGBackend::with_string(&mut svg, size).into_drawing_area())
        .map_err(|e| anyhow!("cannot draw the plot: {e}"))?;
    Ok(svg
        .replace(&format!("font-family=\"{FONT}\""), &format!("font-family=\"{FONT}, Helvetica, Arial, sans-serif\"")))
}

/// Text of `size` pixels.
pub fn text(size: i32, colour: &'static RGBColor) -> TextStyle<'static> {
    TextStyle::from((FONT, size).into_font()).color(colour)
}

fn render(figure: &Figure, root: &Canvas<'_>) -> Drawn {
    root.fill(&WHITE)?;
    root.draw(&Text::new(figure.title.clone(), (92, 26), text(34, &INK)))?;
    root.draw(&Text::new(figure.subtitle.clone(), (92, 70), text(20, &GREY)))?;

    let longest = figure.series.iter().flat_map(|s| s.points.last()).map(|p| p.0).max().unwrap_or(1).max(2);
    let right = 40 + 12 * figure.series.iter().map(|s| s.label.chars().count()).max().unwrap_or(0) as u32;
    let mut chart = ChartBuilder::on(root)
        .margin_top(126)
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
        .x_desc(figure.x_title)
        .axis_desc_style(text(20, &GREY))
        .label_style(text(18, &GREY))
        .draw()?;

    let mut labels = Vec::new();
    if let Some(chance) = figure.chance {
        chart.draw_series(DashedLineSeries::new([(0.0, chance), (x_end, chance)], 6, 6, GREY.stroke_width(1)))?;
        labels.push((chance, "guessing".to_owned(), &GREY, 18));
    }
    // The first series last, on top of the others.
    for (series, colour) in figure.series.iter().zip(COLOURS.iter().cycle()).collect::<Vec<_>>().into_iter().rev() {
        let pieces = smooth(&series.points, figure.train_max, figure.period);
        if let Some(end) = pieces.last().and_then(|piece| piece.last()) {
            labels.push((end.1, series.label.clone(), colour, 22));
        }
        chart.draw_series(LineSeries::new(pieces.concat(), colour.stroke_width(4)))?;
    }
    // Names stand at the ends of their lines, from the lowest up, each moved clear of the one below.
    labels.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut free_from = f64::NEG_INFINITY;
    for (y, label, colour, size) in labels {
        let y = y.max(free_from);
        free_from = y + 0.055;
        let at = chart.backend_coord(&(x_end, y));
        let style = text(size, colour).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(label, (at.0 + 12, at.1), style))?;
    }
    if let Some(train_max) = figure.train_max.map(f64::from).filter(|t| *t < x_end) {
        let at = chart.backend_coord(&(0.0, 1.04));
        let style = text(16, &GREY).pos(Pos::new(HPos::Left, VPos::Bottom));
        root.draw(&Text::new(format!("trained on 1–{train_max}"), (at.0, at.1 - 4), style))?;
    }
    root.present()
}

/// A moving average over [`smoothing_window`] lengths with triangular weights, cut off at the ends; trained lengths and
/// longer ones are averaged apart, so that a break at the border stays sharp.
///
/// With a period these weights are two averages over whole periods, one after the other; at the ends they keep their width
/// and move inwards, so that what is constant but for its period stays level up to there.
fn smooth(points: &[(u32, f64)], train_max: Option<u32>, period: Option<u32>) -> Vec<Vec<(f64, f64)>> {
    let cycle = cycle(points, period);
    let window = smoothing_window(points.len(), cycle);
    let half = (window / 2) as i64;
    let border = train_max.map_or(0, |t| points.partition_point(|p| p.0 <= t));
    let (trained, longer) = points.split_at(border);
    let whole_periods = |piece: &[(u32, f64)], cycle: usize| -> Vec<(f64, f64)> {
        let width = match piece.len() {
            n if n >= window.div_ceil(2) => window.div_ceil(2),
            n => n / cycle * cycle,
        };
        let average = |values: Vec<f64>, before: usize| -> Vec<f64> {
            let first = |i: usize| i.saturating_sub(before).min(values.len() - width);
            (0..values.len()).map(|i| values[first(i)..first(i) + width].iter().sum::<f64>() / width as f64).collect()
        };
        let values = average(piece.iter().map(|p| p.1).collect(), width / 2);
        let values = average(values, (width - 1) / 2);
        piece.iter().map(|p| f64::from(p.0)).zip(values).collect()
    };
    let average = |piece: &[(u32, f64)]| -> Vec<(f64, f64)> {
        if let Some(cycle) = cycle.map(|cycle| cycle as usize).filter(|cycle| piece.len() >= *cycle && window > 1) {
            return whole_periods(piece, cycle);
        }
        let mean = |i: usize| {
            let window = i.saturating_sub(half as usize)..(i + half as usize + 1).min(piece.len());
            let weighted = window.map(|j| ((half + 1 - (j as i64 - i as i64).abs()) as f64, piece[j].1));
            let (weights, sum) = weighted.fold((0.0, 0.0), |(w, s), (weight, y)| (w + weight, s + weight * y));
            sum / weights
        };
        (0..piece.len()).map(|i| (f64::from(piece[i].0), mean(i))).collect()
    };
    [trained, longer].into_iter().filter(|piece| !piece.is_empty()).map(average).collect()
}

/// Twice the SVG's size, so that it is sharp on a projector.
fn rasterise(svg: &str) -> Result<Vec<u8>> {
    let mut options = usvg::Options::default();
    let fonts = Arc::make_mut(&mut options.fontdb);
    fonts.load_font_data(UBUNTU_LIGHT.to_vec());
    let family = fonts.faces().next().and_then(|face| face.families.first().map(|(name, _)| name.clone()));
    options.font_family = family.unwrap_or_else(|| FONT.into());
    let tree = usvg::Tree::from_str(svg, &options).context("cannot draw the plot")?;
    let (width, height) = (tree.size().width() as u32, tree.size().height() as u32);
    let mut pixels = tiny_skia::Pixmap::new(2 * width, 2 * height).context("no memory for the plot")?;
    resvg::render(&tree, tiny_skia::Transform::from_scale(2.0, 2.0), &mut pixels.as_mut());
    pixels.encode_png().map_err(|e| anyhow!("cannot encode the plot: {e}"))
}

/// The points of a sweep that have a score.
pub fn points(results: &[LengthResult]) -> Vec<(u32, f64)> {
    results.iter().filter_map(|r| Some((r.length, r.score()?.last_accuracy()?))).collect()
}

/// The score of guessing among the labels that occur.
pub fn chance(family: &dyn Family) -> Option<f64> {
    if family.outside().is_some() {
        return family.chance(200);
    }
    let track = family.track(0, 0, 200);
    let labels: HashSet<i16> = track.labels.into_iter().filter(|l| *l >= 0).collect();
    (!labels.is_empty()).then(|| 1.0 / labels.len() as f64)
}

/// Whether a task with this name is one of counting.
pub fn counts(task: &str) -> bool {
    const COUNTING: [&str; 7] =
        ["debug", "modular", "plain", "raspl", "selective", "selective_items", "selective_modular"];
    let base = task.split(',').next().unwrap_or_default();
    base.starts_with("counting") || base == "shifted_start" || COUNTING.contains(&base)
}

/// What the length axis of a task's picture says.
pub fn length_title(task: &str) -> &'static str {
    if counts(task) { "test length (counted symbols)" } else { "test length" }
}

/// A task's name as it fits over a picture: an automaton's is its whole table.
pub fn short_task(name: &str) -> String {
    const MOST: usize = 60;
    match name.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

/// "averaged over N neighbouring lengths", where the picture does that.
pub fn smoothing_note(points: usize, period: Option<u32>) -> String {
    match smoothing_window(points, period) {
        1 => String::new(),
        n => format!(", averaged over {n} neighbouring lengths"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn models_are_called_as_people_write_them() {
        for (arch, positions, name) in [
            ("lstm", "", "LSTM"),
            ("lstm", "none", "LSTM"),
            ("mingru", "none", "minGRU"),
            ("rwkv6", "none", "RWKV-6"),
            ("deltanet", "none", "Gated DeltaNet"),
            ("transformer", "none", "Transformer (NoPE)"),
            ("transformer", "rope+shift", "Transformer (RoPE, shift)"),
            ("transformer", "alibi", "Transformer (ALiBi)"),
            ("transformer", "", "Transformer"),
            ("theirs", "none", "theirs"),
            ("theirs", "learned", "theirs (learned)"),
        ] {
            assert_eq!(display_name(arch, positions), name);
        }
    }

    #[test]
    fn the_moving_average_keeps_means_and_the_break_after_training() {
        let accuracy = |l| if l <= 50 { 1.0 } else { f64::from(l % 2) };
        let points: Vec<(u32, f64)> = (1..=400).map(|l| (l, accuracy(l))).collect();
        let pieces = smooth(&points, Some(50), None);
        assert_eq!((pieces[0].len(), pieces[1].len()), (50, 350));
        assert_eq!(pieces[0][49], (50.0, 1.0));
        assert!(pieces[1].iter().all(|p| (p.1 - 0.5).abs() < 0.05), "{:?}", pieces[1]);
    }

    #[test]
    fn a_guess_is_a_level_line_over_whole_periods() {
        let mod10 = data::Task::by_name("counting_samesymbol_mod10bos").unwrap();
        assert_eq!(period(mod10.family.as_ref()), Some(10));
        let helped = data::Task::by_name("modular,modulus=7,helper=pad").unwrap();
        assert_eq!(period(helped.family.as_ref()), Some(7));
        for name in ["counting_samesymbol", "counting_selective", "counting_raspL", "counting_selective_modular_4items"]
        {
            assert_eq!(period(data::Task::by_name(name).unwrap().family.as_ref()), None, "{name}");
        }
        for (longest, step) in [(100, 1), (250, 1), (1000, 1), (1003, 1), (1000, 5), (1000, 4), (1000, 10)] {
            let lengths = (1..=longest).filter(|l| l % step == 0);
            let points: Vec<(u32, f64)> = lengths.map(|l| (l, f64::from(u32::from(l % 10 == 0)))).collect();
            for piece in smooth(&points, Some(50), Some(10)) {
                let (low, high) = piece.iter().fold((1.0f64, 0.0f64), |(l, h), p| (l.min(p.1), h.max(p.1)));
                assert!(high - low < 1e-9, "1..{longest}:{step}: {low} to {high}");
            }
        }
    }

    #[test]
    fn both_files_are_written_and_the_svg_has_text() {
        let dir = tempfile::tempdir().unwrap();
        let points = (1..=100).map(|l| (l, if l <= 50 { 1.0 } else { 0.1 })).collect();
        let figure = Figure {
            title: "A title".into(),
            subtitle: "a subtitle".into(),
            x_title: length_title("debug"),
            train_max: Some(50),
            chance: Some(0.1),
            period: None,
            series: vec![Series { label: "lstm".into(), points }],
        };
        let [svg, png] = write(&figure, &dir.path().join("lr0.01")).unwrap();
        assert_eq!(svg, dir.path().join("lr0.01.svg"));
        assert!(std::fs::read_to_string(svg).unwrap().contains("A title"));
        assert_eq!(&std::fs::read(png).unwrap()[1..4], b"PNG");
    }
}
