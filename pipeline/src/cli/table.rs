//! Tables and lines as they reach standard output: fitted to a terminal, tab-separated in a pipe.
//!
//! In a terminal a table has a rule under its head and nothing else, and no line is wider than the screen: columns wrap
//! or are shortened, as each one says, and the least important ones are left out where even that does not do. Everywhere
//! else a table is its header and its rows, with a tab between cells, whole.

use std::fmt;
use std::io::IsTerminal;
use terminal_size::{Width, terminal_size_of};
use unicode_width::UnicodeWidthStr;

/// The width of a terminal that does not say how wide it is.
const USUAL_WIDTH: usize = 80;
/// Narrower than this nothing is legible, even if a terminal says that it is narrower.
const LEAST_WIDTH: usize = 20;
/// Between two columns.
const GAP: usize = 2;
/// Lines of one cell at most.
const CELL_LINES: usize = 4;

/// Columns of the terminal that standard output is; `None` for pipes and files.
pub fn screen_width() -> Option<usize> {
    let stdout = std::io::stdout();
    stdout.is_terminal().then(|| width_of(terminal_size_of(&stdout).map(|(Width(width), _)| width)))
}

/// Columns of the terminal that standard error is; `None` for pipes and files.
pub fn error_screen_width() -> Option<usize> {
    let stderr = std::io::stderr();
    stderr.is_terminal().then(|| width_of(terminal_size_of(&stderr).map(|(Width(width), _)| width)))
}

/// `COLUMNS` goes before what the terminal says, as it does for other programs.
fn width_of(terminal: Option<u16>) -> usize {
    let wanted = std::env::var("COLUMNS").ok().and_then(|columns| columns.trim().parse().ok());
    wanted.or(terminal.map(usize::from)).filter(|width| *width > 0).unwrap_or(USUAL_WIDTH).max(LEAST_WIDTH)
}

/// How a column behaves.
#[derive(Debug, Clone)]
pub struct Column {
    title: String,
    right: bool,
    optional: bool,
    fit: Fit,
}

#[derive(Debug, Clone, Copy)]
enum Fit {
    /// Its cells stay whole.
    Whole,
    /// Its cells go over several lines of at least this width.
    Wrap(usize),
    /// Its cells end in `…`, but are at least this wide, and at most as wide as the second number.
    Shorten(usize, usize),
}

/// A column whose cells stay whole.
pub fn column(title: &str) -> Column {
    Column { title: title.to_owned(), right: false, optional: false, fit: Fit::Whole }
}

impl Column {
    /// Aligned to the right.
    pub fn right(self) -> Self {
        Self { right: true, ..self }
    }

    /// Wrapped where space is scarce, to `least` columns at most.
    pub fn wrap(self, least: usize) -> Self {
        Self { fit: Fit::Wrap(least), ..self }
    }

    /// Shortened where space is scarce, to `least` columns at most; and to `most` however wide the terminal is.
    pub fn shorten(self, least: usize, most: usize) -> Self {
        Self { fit: Fit::Shorten(least, most), ..self }
    }

    /// Left out where space is very scarce; of several such columns, the last goes first.
    pub fn optional(self) -> Self {
        Self { optional: true, ..self }
    }

    /// The width to which the column is reduced before others are left out; `cells` is that of its widest cell.
    fn least(&self, cells: usize) -> usize {
        let title = self.title.split(' ').map(str::width).max().unwrap_or(0);
        match self.fit {
            Fit::Whole => cells.max(title),
            Fit::Wrap(least) | Fit::Shorten(least, _) => cells.min(least).max(title),
        }
    }
}

/// Rows under a head. [`fmt::Display`] gives it the form that standard output asks for.
#[derive(Debug, Clone)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Self { columns: columns.into_iter().collect(), rows: vec![] }
    }

    /// Adds a row with a cell for each column.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut cells: Vec<String> = cells.into_iter().map(|cell| cell.replace('\t', " ").replace('\r', "")).collect();
        cells.resize(self.columns.len(), String::new());
        self.rows.push(cells);
    }

    /// The header and the rows with a tab between cells.
    pub fn separated(&self) -> String {
        let plain = |cell: &str| cell.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        let mut lines = vec![self.columns.iter().map(|c| plain(&c.title)).collect::<Vec<_>>().join("\t")];
        lines.extend(self.rows.iter().map(|row| row.iter().map(|c| plain(c)).collect::<Vec<_>>().join("\t")));
        lines.join("\n")
    }

    /// The table for a terminal of `width` columns.
    pub fn fitted(&self, width: usize) -> String {
        let (shown, widths) = self.layout(width);
        let line = |cells: Vec<Vec<String>>| -> Vec<String> {
            let height = cells.iter().map(Vec::len).max().unwrap_or(0);
            let cell = |lines: &Vec<String>, index: usize, row: usize| {
                let text = lines.get(row).map_or("", String::as_str);
                let space = " ".repeat(widths[index].saturating_sub(text.width()));
                if self.columns[shown[index]].right { space + text } else { text.to_owned() + &space }
            };
            let row = |row| cells.iter().enumerate().map(|(i, lines)| cell(lines, i, row)).collect::<Vec<_>>();
            (0..height).map(|r| row(r).join(&" ".repeat(GAP)).trim_end().to_owned()).collect()
        };
        let mut head: Vec<Vec<String>> =
            shown.iter().zip(&widths).map(|(c, width)| wrap(&self.columns[*c].title, *width)).collect();
        // Short titles stand on the rule, beside the last lines of long ones.
        let height = head.iter().map(Vec::len).max().unwrap_or(0);
        head.iter_mut().for_each(|lines| drop(lines.splice(..0, vec![String::new(); height - lines.len()])));
        let mut lines = line(head);
        lines.push("─".repeat(widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1)));
        for row in &self.rows {
            let cell = |(c, width): (&usize, &usize)| match self.columns[*c].fit {
                Fit::Shorten(..) => vec![shorten(&row[*c].replace('\n', " "), *width)],
                _ => wrap(&row[*c], *width),
            };
            lines.extend(line(shown.iter().zip(&widths).map(cell).collect()));
        }
        let says_something = |c: &usize| self.rows.iter().any(|row| !row[*c].is_empty());
        let left_out = (0..self.columns.len()).filter(|c| !shown.contains(c)).filter(says_something);
        let left_out: Vec<&str> = left_out.map(|c| self.columns[c].title.as_str()).collect();
        if !left_out.is_empty() {
            let note = format!("(not shown: {}; a wider terminal or a pipe has them)", left_out.join(", "));
            lines.push(prose(&note, width));
        }
        lines.join("\n")
    }

    /// The columns that there is room for, and their widths.
    fn layout(&self, width: usize) -> (Vec<usize>, Vec<usize>) {
        let cells: Vec<usize> = (0..self.columns.len())
            .map(|c| self.rows.iter().flat_map(|row| row[c].lines()).map(str::width).max().unwrap_or(0))
            .collect();
        // A column that may be left out and says nothing is.
        let is_empty = |c: &usize| cells[*c] == 0 && self.columns[*c].optional && !self.rows.is_empty();
        let mut shown: Vec<usize> = (0..self.columns.len()).filter(|c| !is_empty(c)).collect();
        loop {
            let widest = |c: &usize| {
                let most = if let Fit::Shorten(_, most) = self.columns[*c].fit { most } else { usize::MAX };
                cells[*c].min(most).max(self.columns[*c].title.width())
            };
            let mut widths: Vec<usize> = shown.iter().map(widest).collect();
            let room = width.saturating_sub(GAP * shown.len().saturating_sub(1));
            // Titles of several words come first, then the columns that can be narrower than their cells.
            let least: Vec<usize> = shown.iter().map(|c| self.columns[*c].least(cells[*c])).collect();
            let whole = shown.iter().map(|c| matches!(self.columns[*c].fit, Fit::Whole));
            let only_titles =
                whole.zip(&least).zip(&widths).map(|((whole, least), all)| if whole { *least } else { *all });
            let only_titles: Vec<usize> = only_titles.collect();
            narrow(&mut widths, &only_titles, room);
            narrow(&mut widths, &least, room);
            if widths.iter().sum::<usize>() <= room {
                return (shown, widths);
            }
            match shown.iter().rposition(|c| self.columns[*c].optional) {
                Some(last) => drop(shown.remove(last)),
                None => {
                    narrow(&mut widths, &vec![4; shown.len()], room);
                    return (shown, widths);
                }
            }
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&screen_width().map_or_else(|| self.separated(), |width| self.fitted(width)))
    }
}

/// Takes from the widest columns until they all fit into `room` or none is wider than its least width.
fn narrow(widths: &mut [usize], least: &[usize], room: usize) {
    while widths.iter().sum::<usize>() > room {
        let above = (0..widths.len()).filter(|i| widths[*i] > least[*i]);
        let Some(widest) = above.max_by_key(|i| (widths[*i], *i)) else { return };
        widths[widest] -= 1;
    }
}

/// The text, or its beginning and `…`.
pub fn shorten(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut short = String::new();
    for c in text.chars() {
        if short.width() + c.to_string().width() + 1 > width {
            break;
        }
        short.push(c);
    }
    short.trim_end().to_owned() + "…"
}

/// Lines of at most `width` columns: broken at spaces, within long words behind punctuation, and anywhere if need be.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split(' ') {
            let gap = usize::from(!line.is_empty());
            if line.width() + gap + word.width() <= width {
                line += &" ".repeat(gap);
                line += word;
                continue;
            }
            if !line.is_empty() {
                lines.push(std::mem::take(&mut line));
            }
            for piece in word.split_inclusive(['_', ',', '/', '-', '=', '·']) {
                if line.width() + piece.width() > width && !line.is_empty() {
                    lines.push(std::mem::take(&mut line));
                }
                for c in piece.chars() {
                    if line.width() + c.to_string().width() > width && !line.is_empty() {
                        lines.push(std::mem::take(&mut line));
                    }
                    line.push(c);
                }
            }
        }
        lines.push(line);
    }
    if lines.len() > CELL_LINES {
        let rest = lines.split_off(CELL_LINES - 1).join(" ");
        lines.push(shorten(&rest, width));
    }
    lines
}

/// Text whose long lines are broken at spaces, the rest of each line indented. Words stay whole: paths are copied.
pub fn prose(text: &str, width: usize) -> String {
    let mut lines = Vec::new();
    for line in text.split('\n') {
        let words = line.trim_start_matches(' ');
        let indent = line.len() - words.len();
        let mut current = " ".repeat(indent);
        let mut is_empty = true;
        for word in words.split(' ') {
            if !is_empty && current.width() + 1 + word.width() > width {
                lines.push(current.trim_end().to_owned());
                current = " ".repeat((indent + 2).min(width / 2));
                is_empty = true;
            }
            if is_empty && word.is_empty() {
                continue;
            }
            if !is_empty {
                current.push(' ');
            }
            current += word;
            is_empty = false;
        }
        lines.push(current.trim_end().to_owned());
    }
    lines.join("\n")
}

/// `label  value`, the value in a column of its own: in a terminal its long lines are wrapped there, behind slashes too.
pub fn labelled(label: &str, value: &str, indent: usize) -> String {
    labelled_within(label, value, indent, screen_width())
}

fn labelled_within(label: &str, value: &str, indent: usize, width: Option<usize>) -> String {
    let room = width.map(|width| width.saturating_sub(indent).max(LEAST_WIDTH));
    let lines: Vec<String> = match room {
        None => value.lines().map(str::to_owned).collect(),
        Some(room) => value.lines().flat_map(|line| pieces(line, room)).collect(),
    };
    format!("{label:indent$}{}", lines.join(&format!("\n{}", " ".repeat(indent))))
}

/// [`wrap`] without an end.
fn pieces(line: &str, room: usize) -> Vec<String> {
    let mut found = Vec::new();
    let mut current = String::new();
    for piece in line.split_inclusive([' ', '/']) {
        if current.width() + piece.trim_end().width() > room && !current.is_empty() {
            found.push(std::mem::take(&mut current).trim_end().to_owned());
        }
        current += piece;
    }
    found.push(current.trim_end().to_owned());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let columns = [
            column("task"),
            column("settings").shorten(8, 40).optional(),
            column("worst length").right(),
            column("status").wrap(12),
        ];
        let mut table = Table::new(columns);
        let long = "a learned table of 64 positions ends before this length";
        table.row(["counting_samesymbol_mod10bos".into(), "k=v ".repeat(30), "1".into(), long.into()]);
        table.row(["modular,modulus=7".into(), "modulus=7".into(), "1000: 3.5 %".into(), "ok\tfine\nreally".into()]);
        table
    }

    #[test]
    fn a_pipe_gets_everything_between_tabs() {
        let text = table().separated();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0], "task\tsettings\tworst length\tstatus");
        assert!(lines.iter().all(|line| line.split('\t').count() == 4), "{text}");
        assert!(lines[1].contains(&"k=v ".repeat(29)) && lines[2].ends_with("ok fine really"), "{text}");
    }

    #[test]
    fn a_terminal_gets_lines_that_fit_and_one_rule() {
        for width in [30, 50, 60, 80, 100, 200] {
            let text = table().fitted(width);
            assert!(text.lines().all(|line| line.width() <= width), "{width}\n{text}");
            assert_eq!(text.lines().filter(|line| line.starts_with('─')).count(), 1, "{text}");
            assert_eq!(text.contains("not shown: settings"), width < 80, "{width}\n{text}");
            assert!(width < 60 || text.contains("counting_samesymbol_mod10bos"), "{width}\n{text}");
        }
        let wide = table().fitted(200);
        assert!(wide.contains("k=v…") && wide.contains("ends before this length\n"), "{wide}");
    }

    #[test]
    fn text_is_broken_at_spaces_and_words_stay_whole() {
        let path = "a/very/long/path/".repeat(4);
        let text = prose(&format!("wrote {path} and more\n  indented words and words"), 20);
        assert_eq!(text, format!("wrote\n  {path}\n  and more\n  indented words and\n    words"));
        assert_eq!(prose("short  columns", 20), "short  columns");
        let found = labelled_within("ONNX", "/usr/lib/python3/site-packages/capi/lib.so", 6, Some(26));
        assert_eq!(found, "ONNX  /usr/lib/python3/\n      site-packages/capi/\n      lib.so");
        assert_eq!(labelled_within("ONNX", "a b c", 6, None), "ONNX  a b c");
    }
}
