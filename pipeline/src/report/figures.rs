//! Every figure of a report as SVG and PNG: accuracy against length, training curves, and the map of tasks and models.

use super::entries::Entry;
use super::read::CurveRow;
use super::{Report, ResultTable, TaskFacts};
use crate::cli::endings::told_apart;
use crate::cli::outputs::Outputs;
use crate::plot::{COLOURS, Canvas, Drawn, GREY, GRID, INK, SHADE, draw, save, text};
use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Lines in one picture at most: as many as there are colours.
const LINES: usize = 6;
/// Points of a line.
const POINTS: usize = 75;
/// With more lines than this, their intervals would hide each other.
const BANDS: usize = 3;
const SIZE: (u32, u32) = (1200, 675);

/// A picture of a report.
pub struct Figure {
    /// Its name, that of its files without their endings.
    pub name: String,
    /// Its title, for readers.
    pub title: String,
    drawing: Drawing,
}

enum Drawing {
    Lines(Chart),
    Map(ResultTable, Vec<TaskFacts>),
}

/// Lines over a common axis.
struct Chart {
    subtitle: String,
    /// The facts that all models share.
    shared: String,
    x_title: &'static str,
    /// Where the axis ends.
    x_end: f64,
    /// Lengths up to here were trained on.
    train_max: Option<u32>,
    chance: Option<f64>,
    /// Base-ten logarithms stand for losses; accuracies stand for themselves.
    logarithmic: bool,
    lines: Vec<Line>,
}

#[derive(Clone)]
struct Line {
    label: String,
    points: Vec<(f64, f64)>,
    /// x, low, high
    band: Vec<(f64, f64, f64)>,
}

/// A quantity of the training curves.
pub struct Training {
    /// Its name in file names.
    pub id: &'static str,
    /// Its name, for readers.
    pub title: &'static str,
    /// The split whose rows hold it.
    pub split: &'static str,
    /// The value of a row.
    pub value: fn(&CurveRow) -> Option<f64>,
    /// Whether its axis is logarithmic.
    pub logarithmic: bool,
}

/// The training curves that are shown.
pub const TRAINING: [Training; 3] = [
    Training { id: "loss", title: "Training loss", split: "train", value: |r| r.loss, logarithmic: true },
    Training { id: "val", title: "Accuracy on val", split: "val", value: |r| r.accuracy, logarithmic: false },
    Training {
        id: "ood_test",
        title: "Accuracy on ood_test",
        split: "ood_test",
        value: |r| r.accuracy,
        logarithmic: false,
    },
];

/// The figures that there are results for. Where there are more models than colours, a figure has several parts.
pub fn all(report: &Report) -> Vec<Figure> {
    let mut figures = Vec::new();
    let shared = report.shared().unwrap_or_default();
    if let Some(table) = report.tables().into_iter().find(|t| t.id == "longer" || t.id == "ood_test-last_accuracy") {
        let title = table.title.clone();
        figures.push(Figure { name: "map".into(), title, drawing: Drawing::Map(table, report.tasks.clone()) });
    }
    for task in &report.tasks {
        let entries: Vec<_> = report.entries.iter().filter(|c| c.task == task.name).collect();
        let accuracy = entries.iter().map(|entry| {
            let curve = entry.curve(POINTS, task.period);
            let middle = |first: u32, last: u32| f64::from(first + last) / 2.0;
            Line {
                label: entry.model.clone(),
                points: curve.iter().map(|p| (middle(p.first, p.last), p.mean)).collect(),
                band: curve.iter().map(|p| (middle(p.first, p.last), p.interval.0, p.interval.1)).collect(),
            }
        });
        let chart = |lines: Vec<Line>| Chart {
            subtitle: format!(
                "{} · mean over runs{}{}",
                crate::plot::short_task(&task.name),
                if lines.len() <= BANDS { ", 95 % interval" } else { "" },
                averaged(&entries, task.period)
            ),
            shared: shared.clone(),
            x_title: crate::plot::length_title(&task.name),
            x_end: entries.iter().filter_map(|entry| entry.longest()).max().map_or(0.0, f64::from),
            train_max: task.train_max,
            chance: task.chance,
            logarithmic: false,
            lines,
        };
        let name = format!("accuracy-{}", file_name(&task.name));
        push(&mut figures, &name, "Last-token accuracy against length", accuracy.collect(), chart);
        for kind in &TRAINING {
            let scale = |y: f64| if kind.logarithmic { y.max(1e-9).log10() } else { y };
            let lines = entries.iter().map(|entry| {
                let points = entry.training(kind.split, kind.value, POINTS).into_iter().map(|(x, y)| (x, scale(y)));
                Line { label: entry.model.clone(), points: points.collect(), band: vec![] }
            });
            let chart = |lines: Vec<Line>| Chart {
                subtitle: format!("{} · mean over runs", crate::plot::short_task(&task.name)),
                shared: shared.clone(),
                x_title: "optimisation step",
                x_end: 0.0,
                train_max: None,
                chance: None,
                logarithmic: kind.logarithmic,
                lines,
            };
            let name = format!("training-{}-{}", kind.id, file_name(&task.name));
            push(&mut figures, &name, kind.title, lines.collect(), chart);
        }
    }
    // Names of tasks can differ in what names of files cannot show.
    let names: Vec<_> = figures.iter().map(|figure| (figure.name.clone(), PathBuf::new())).collect();
    figures.iter_mut().zip(told_apart(&names)).for_each(|(figure, name)| figure.name = name);
    figures
}

fn push(figures: &mut Vec<Figure>, name: &str, title: &str, mut lines: Vec<Line>, chart: impl Fn(Vec<Line>) -> Chart) {
    lines.retain(|line| line.points.len() > 1);
    let parts = lines.len().div_ceil(LINES);
    for (part, lines) in lines.chunks(LINES).enumerate() {
        let (name, title) = match parts {
            1 => (name.to_owned(), title.to_owned()),
            _ => (format!("{name}-{}", part + 1), format!("{title} ({} of {parts})", part + 1)),
        };
        figures.push(Figure { name, title, drawing: Drawing::Lines(chart(lines.to_vec())) });
    }
}

/// How many neighbouring lengths a point stands for, where that is more than one.
fn averaged(entries: &[&Entry], period: Option<u32>) -> String {
    let widest = entries.iter().flat_map(|entry| entry.curve(POINTS, period)).map(|p| p.last - p.first + 1).max();
    widest.filter(|n| *n > 1).map_or(String::new(), |n| format!(", up to {n} neighbouring lengths averaged"))
}

/// Letters, digits, `-` and `_`; anything else becomes `-`. Long ones are cut, since names of files end at 255 bytes.
pub fn file_name(text: &str) -> String {
    let name: String = text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect();
    data::capped(&name)
}

/// Writes all of them into `folder`, on all cores; returns the paths.
///
/// # Errors
/// A file cannot be written.
pub fn write(figures: &[Figure], folder: &Path, outputs: &Outputs) -> Result<Vec<PathBuf>> {
    let (next, written) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(figure) = figures.get(next.fetch_add(1, Ordering::Relaxed)) {
            let paths = figure.svg().and_then(|svg| save(&svg, &folder.join(&figure.name)));
            paths.iter().flatten().for_each(|path| outputs.note_written(path));
            written.lock().unwrap_or_else(|e| e.into_inner()).push(paths);
        }
    };
    data::threads::share(data::threads::available(), work);
    let written: Result<Vec<_>> = written.into_inner().unwrap_or_else(|e| e.into_inner()).into_iter().collect();
    let mut paths = written.map_err(|error| outputs.explained(error))?.concat();
    paths.sort();
    Ok(paths)
}

impl Figure {
    /// Its files, once it is written into `folder`.
    pub fn files(&self, folder: &Path) -> [PathBuf; 2] {
        crate::plot::files(&folder.join(&self.name))
    }

    /// The drawing.
    ///
    /// # Errors
    /// None that results can cause.
    pub fn svg(&self) -> Result<String> {
        match &self.drawing {
            Drawing::Lines(chart) => draw(SIZE, |root| chart.render(&self.title, root)),
            Drawing::Map(table, tasks) => {
                let labels = table.models.iter().map(|m| m.chars().count()).max().unwrap_or(0) as i32;
                let left = 48 + 9 * labels;
                let size = (left + 24 + CELL.0 * table.tasks.len() as i32, 190 + CELL.1 * table.models.len() as i32);
                let size = (size.0.max(640) as u32, size.1 as u32);
                draw(size, |root| map(table, tasks, &self.title, left, root))
            }
        }
    }
}

impl Chart {
    fn render(&self, title: &str, root: &Canvas<'_>) -> Drawn {
        root.fill(&WHITE)?;
        root.draw(&Text::new(title.to_owned(), (92, 26), text(34, &INK)))?;
        root.draw(&Text::new(self.subtitle.clone(), (92, 66), text(20, &GREY)))?;
        root.draw(&Text::new(self.shared.clone(), (92, 90), text(17, &GREY)))?;
        let all = || self.lines.iter().flat_map(|line| &line.points);
        let x_end = all().map(|p| p.0).fold(self.x_end.max(2.0), f64::max);
        let (low, high) = self.range();
        let longest = self.lines.iter().map(|line| line.label.chars().count()).max().unwrap_or(0) as u32;
        let right = (60 + 10 * longest).min(520);
        let mut chart = ChartBuilder::on(root)
            .margin_top(126)
            .margin_right(right)
            .margin_left(24)
            .margin_bottom(16)
            .x_label_area_size(64)
            .y_label_area_size(72)
            .build_cartesian_2d(0f64..x_end, low..high)?;
        let train_max = self.train_max.map(f64::from).filter(|t| *t < x_end);
        if let Some(train_max) = train_max {
            chart.draw_series([Rectangle::new([(0.0, low), (train_max, high)], SHADE.filled())])?;
        }
        let y_label: &dyn Fn(&f64) -> String = if self.logarithmic { &power } else { &percent };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID.stroke_width(1))
            .axis_style(TRANSPARENT)
            .y_labels(6)
            .x_labels(9)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(y_label)
            .x_desc(self.x_title)
            .axis_desc_style(text(20, &GREY))
            .label_style(text(18, &GREY))
            .draw()?;
        if let Some(chance) = self.chance {
            chart.draw_series(DashedLineSeries::new([(0.0, chance), (x_end, chance)], 6, 6, GREY.stroke_width(1)))?;
        }
        let banded = self.lines.iter().filter(|_| self.lines.len() <= BANDS);
        for (line, colour) in banded.zip(COLOURS.iter().cycle()) {
            let there = line.band.iter().map(|(x, low, _)| (*x, *low));
            let back = line.band.iter().rev().map(|(x, _, high)| (*x, *high));
            let outline: Vec<(f64, f64)> = there.chain(back).collect();
            if outline.len() > 2 {
                chart.draw_series([Polygon::new(outline, colour.mix(0.12).filled())])?;
            }
        }
        let pixels = |line: &Line| line.points.iter().map(|point| chart.backend_coord(point)).collect();
        let pixels: Vec<Vec<Pixel>> = self.lines.iter().map(pixels).collect();
        let pieces = pieces(&pixels);
        for (pieces, colour) in pieces.iter().zip(COLOURS.iter().cycle()) {
            for piece in pieces {
                root.draw(&PathElement::new(piece.clone(), colour.stroke_width(3)))?;
            }
        }
        let hidden = pieces.iter().any(|pieces| pieces.len() > 1);
        if let Some(train_max) = train_max {
            let at = chart.backend_coord(&(0.0, high));
            let style = text(16, &GREY).pos(Pos::new(HPos::Left, VPos::Bottom));
            root.draw(&Text::new(format!("trained on 1–{train_max}"), (at.0, at.1 - 4), style))?;
        }
        self.key(root, SIZE.0 as i32 - right as i32 + 12, hidden)?;
        root.present()
    }

    /// The lowest and the highest value of the vertical axis.
    fn range(&self) -> (f64, f64) {
        if !self.logarithmic {
            return (-0.02, 1.04);
        }
        let all = || self.lines.iter().flat_map(|line| &line.points);
        let low = all().map(|p| p.1).fold(f64::INFINITY, f64::min);
        let high = all().map(|p| p.1).fold(low + 0.1, f64::max);
        (low - 0.05 * (high - low), high + 0.05 * (high - low))
    }

    /// The key at `x`, in the order of the tables; `hidden` says that lines lie on each other.
    fn key(&self, root: &Canvas<'_>, x: i32, hidden: bool) -> Drawn {
        for (row, (line, colour)) in self.lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
            let y = 140 + 30 * row as i32;
            root.draw(&PathElement::new([(x, y), (x + 24, y)], colour.stroke_width(4)))?;
            let style = text(18, &INK).pos(Pos::new(HPos::Left, VPos::Center));
            root.draw(&Text::new(line.label.clone(), (x + 34, y), style))?;
        }
        if hidden {
            let y = 140 + 30 * (self.lines.len() + usize::from(self.chance.is_some())) as i32;
            let style = text(16, &GREY).pos(Pos::new(HPos::Left, VPos::Center));
            root.draw(&Text::new("dashes: equal curves", (x, y), style))?;
        }
        if self.chance.is_some() {
            let y = 140 + 30 * self.lines.len() as i32;
            let dashes = [0, 9, 18].map(|offset| PathElement::new([(x + offset, y), (x + offset + 5, y)], GREY));
            dashes.iter().try_for_each(|dash| root.draw(dash))?;
            let style = text(18, &GREY).pos(Pos::new(HPos::Left, VPos::Center));
            root.draw(&Text::new("guessing", (x + 34, y), style))?;
        }
        Ok(())
    }
}

/// A label of an axis of accuracies.
fn percent(y: &f64) -> String {
    format!("{:.0} %", 100.0 * y)
}

/// A label of a logarithmic axis: ten to the power of `y`.
fn power(y: &f64) -> String {
    match 10f64.powf(*y) {
        v if v < 0.001 => format!("{v:.0e}"),
        v if v < 1.0 => format!("{v:.3}"),
        v => format!("{v:.2}"),
    }
}

type Pixel = (i32, i32);

/// The strokes of every line: one, or, where lines lie on each other, every n-th dash of these stretches, so that all
/// of them are seen.
fn pieces(lines: &[Vec<Pixel>]) -> Vec<Vec<Vec<Pixel>>> {
    const DASH: f64 = 12.0;
    // Lines within a pixel of each other at an x belong together there.
    let mut places: BTreeMap<i32, Vec<(i32, usize)>> = BTreeMap::new();
    for (index, line) in lines.iter().enumerate() {
        line.iter().for_each(|(x, y)| places.entry(*x).or_default().push((*y, index)));
    }
    let mut together: BTreeMap<(i32, usize), usize> = BTreeMap::new();
    for (x, mut found) in places {
        found.sort_unstable();
        let mut group = 0;
        for (i, (y, index)) in found.iter().enumerate() {
            group += usize::from(i > 0 && y - found[i - 1].0 > 1);
            together.insert((x, *index), group);
        }
    }
    let key = |index: usize, a: Pixel, b: Pixel| {
        (a.0, b.0, together.get(&(a.0, index)).copied(), together.get(&(b.0, index)).copied())
    };
    let mut members: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for (index, line) in lines.iter().enumerate() {
        for pair in line.windows(2) {
            members.entry(key(index, pair[0], pair[1])).or_default().push(index);
        }
    }
    let strokes = |(index, line): (usize, &Vec<Pixel>)| {
        let mut runs: Vec<(&Vec<usize>, Vec<Pixel>)> = Vec::new();
        for pair in line.windows(2) {
            let Some(with) = members.get(&key(index, pair[0], pair[1])) else { continue };
            match runs.last_mut() {
                Some((same, points)) if *same == with => points.push(pair[1]),
                _ => runs.push((with, pair.to_vec())),
            }
        }
        let mut strokes: Vec<Vec<Pixel>> = Vec::new();
        for (with, points) in runs {
            let turn = with.iter().position(|member| *member == index).unwrap_or(0);
            if with.len() == 1 {
                strokes.push(points);
                continue;
            }
            let length: f64 = points.windows(2).map(|pair| distance(pair[0], pair[1])).sum();
            let dashes = (turn..(length / DASH).ceil() as usize).step_by(with.len());
            strokes.extend(dashes.map(|dash| stretch(&points, DASH * dash as f64, DASH * (dash + 1) as f64)));
        }
        strokes
    };
    lines.iter().enumerate().map(strokes).collect()
}

fn distance(a: Pixel, b: Pixel) -> f64 {
    f64::from(b.0 - a.0).hypot(f64::from(b.1 - a.1))
}

/// The part of a line between two distances from its beginning.
fn stretch(points: &[Pixel], from: f64, to: f64) -> Vec<Pixel> {
    let (mut found, mut before) = (Vec::new(), 0.0);
    for pair in points.windows(2) {
        let length = distance(pair[0], pair[1]);
        let at = |d: f64| {
            let part = ((d - before) / length.max(1e-9)).clamp(0.0, 1.0);
            let along = |a: i32, b: i32| (f64::from(a) + part * f64::from(b - a)).round() as i32;
            (along(pair[0].0, pair[1].0), along(pair[0].1, pair[1].1))
        };
        if before + length >= from && before <= to {
            found.extend([at(from), at(to)]);
        }
        before += length;
    }
    found.dedup();
    found
}

/// Width and height of a entry of the map.
const CELL: (i32, i32) = (132, 34);

fn map(table: &ResultTable, tasks: &[TaskFacts], title: &str, left: i32, root: &Canvas<'_>) -> Drawn {
    root.fill(&WHITE)?;
    root.draw(&Text::new(title.to_owned(), (24, 20), text(22, &INK)))?;
    root.draw(&Text::new("percent, mean over runs", (24, 50), text(18, &GREY)))?;
    let centred = |size, colour| text(size, colour).pos(Pos::new(HPos::Center, VPos::Center));
    for (column, task) in table.tasks.iter().filter_map(|t| tasks.get(*t)).enumerate() {
        for (line, part) in wrap(task.short_name(), 17).into_iter().take(4).enumerate() {
            let at = (left + CELL.0 * column as i32 + CELL.0 / 2, 90 + 19 * line as i32);
            root.draw(&Text::new(part, at, centred(16, &INK)))?;
        }
    }
    for (row, (model, values)) in table.models.iter().zip(&table.values).enumerate() {
        let top = 166 + CELL.1 * row as i32;
        let style = text(18, &INK).pos(Pos::new(HPos::Right, VPos::Center));
        root.draw(&Text::new(model.clone(), (left - 12, top + CELL.1 / 2), style))?;
        for (column, value) in values.iter().enumerate() {
            let Some(value) = value else { continue };
            let corner = (left + CELL.0 * column as i32, top);
            let fill = shade(value.ours.mean);
            root.draw(&Rectangle::new([corner, (corner.0 + CELL.0 - 2, corner.1 + CELL.1 - 2)], fill.filled()))?;
            let ink = if value.ours.mean > 0.55 { &WHITE } else { &INK };
            let middle = (corner.0 + CELL.0 / 2, corner.1 + CELL.1 / 2);
            root.draw(&Text::new(format!("{:.1}", 100.0 * value.ours.mean), middle, centred(17, ink)))?;
        }
    }
    root.present()
}

/// From nearly white at 0 to blue at 1.
fn shade(value: f64) -> RGBColor {
    let mix = |from: f64, to: f64| (from + (to - from) * value.clamp(0.0, 1.0)).round() as u8;
    RGBColor(mix(238.0, 0.0), mix(242.0, 90.0), mix(247.0, 158.0))
}

/// Breaks a name behind underscores into lines of about `width` characters.
fn wrap(name: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for part in name.split_inclusive('_') {
        match lines.last_mut() {
            Some(line) if line.is_empty() || line.len() + part.len() <= width => line.push_str(part),
            _ => lines.push(part.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_lie_on_each_other_share_the_stretch() {
        let level = |y: i32| (0..10).map(|i| (10 * i, y)).collect::<Vec<Pixel>>();
        let mut leaves = level(5);
        leaves[9].1 = 80;
        let found = pieces(&[level(5), leaves, level(50)]);
        assert_eq!(found[2], [level(50)], "a line on its own is one stroke");
        let length = |strokes: &[Vec<Pixel>]| -> f64 {
            strokes.iter().flat_map(|stroke| stroke.windows(2)).map(|pair| distance(pair[0], pair[1])).sum()
        };
        // 80 pixels together, of which both draw about half; the first continues for 10, the second for 76.
        assert!((length(&found[0]) - 50.0).abs() < 13.0, "{:?}", found[0]);
        assert!((length(&found[1]) - 40.0 - distance((80, 5), (90, 80))).abs() < 13.0, "{:?}", found[1]);
        let starts: Vec<i32> = found[0].iter().chain(&found[1]).map(|stroke| stroke[0].0).collect();
        assert!(starts.contains(&0) && starts.contains(&12) && starts.contains(&24), "{starts:?}");
    }
}
