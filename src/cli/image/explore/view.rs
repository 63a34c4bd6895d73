//! How the model looks on a terminal of any size: only what is on the screen is formatted.

use std::ffi::OsStr;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span as Text};
use ratatui::widgets::{Block, Clear, Paragraph, Wrap};

use super::About;
use super::keys::HELP;
use super::model::{Compare, Filter, Fold, Mode, Model, Pane, Row};
use crate::cli::image::{listing, output};
use crate::image::changes::ChangeKind;
use crate::image::layered::{Entry, NodeId, State};
use crate::layer::attr::{FileKind, Timestamp};

/// The narrowest screen on which both panes are shown side by side.
const BOTH_MIN: u16 = 60;

/// What is shown besides the model: text that can be printed.
#[derive(Debug, Clone, Copy)]
pub struct Labels<'a> {
    /// What is looked at.
    pub subject: &'a str,
    /// The layers, lowest first.
    pub layers: &'a [About],
    /// How much of the layers is for nothing.
    pub figures: &'a [String],
    /// The xattrs of the selected path.
    pub xattrs: &'a str,
}

/// Where things are on the screen. What there is no room for is empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct Panes {
    layers: Rect,
    layer: Rect,
    image: Rect,
    tree: Rect,
    details: Rect,
    status: Rect,
}

impl Panes {
    /// Parts the screen; `pane` is the one that stays where there is no room for two.
    pub fn of(area: Rect, pane: Pane) -> Self {
        let [body, status] = Layout::vertical([Constraint::Min(0), Constraint::Length(1)]).areas(area);
        let (left, right) = match pane {
            _ if area.width >= BOTH_MIN => {
                let width = (area.width * 2 / 5).clamp(26, 52);
                let [left, right] = Layout::horizontal([Constraint::Length(width), Constraint::Min(0)]).areas(body);
                (left, right)
            }
            Pane::Layers => (body, Rect::default()),
            Pane::Tree => (Rect::default(), body),
        };
        let (layer, image) = match left.height {
            20.. => (8, 5),
            12.. => (0, 5),
            _ => (0, 0),
        };
        let details = if right.height >= 14 { 7 } else { 0 };
        let column = |area, low: &[u16]| -> [Rect; 3] {
            let low = |at: usize| Constraint::Length(low.get(at).copied().unwrap_or_default());
            Layout::vertical([Constraint::Min(0), low(0), low(1)]).areas(area)
        };
        let [layers, layer, image] = column(left, &[layer, image]);
        let [tree, details, _] = column(right, &[details]);
        Self { layers, layer, image, tree, details, status }
    }

    /// Returns how many rows of the tree, and how many layers, are shown.
    pub fn rows(&self) -> (usize, usize) {
        // Each has a border.
        let within = |area: Rect| usize::from(area.height.saturating_sub(2));
        (within(self.tree), within(self.layers))
    }
}

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, panes: &Panes, model: &Model, labels: Labels<'_>) {
    layers(frame, panes.layers, model, labels);
    layer(frame, panes.layer, model, labels);
    image(frame, panes.image, labels);
    tree(frame, panes.tree, model);
    details(frame, panes.details, model, labels);
    status(frame, panes.status, model);
    if model.mode() == Mode::Help {
        help(frame);
    }
}

/// Where the keys go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Focus {
    Here,
    Elsewhere,
}

impl Focus {
    fn of(model: &Model, pane: Pane) -> Self {
        if model.pane() == pane { Self::Here } else { Self::Elsewhere }
    }
}

fn block<'a>(title: impl Into<Line<'a>>, focus: Focus) -> Block<'a> {
    let style = if focus == Focus::Here { Style::new().add_modifier(Modifier::BOLD) } else { Style::new() };
    Block::bordered().title(title).border_style(style)
}

fn style_of(kind: ChangeKind) -> Style {
    Style::new().fg(match kind {
        ChangeKind::Added => Color::Green,
        ChangeKind::Changed => Color::Yellow,
        ChangeKind::Deleted => Color::Red,
    })
}

/// How the selected line of a pane looks: where the keys go there, and where not.
fn selected(focus: Focus) -> Modifier {
    if focus == Focus::Here { Modifier::REVERSED } else { Modifier::UNDERLINED }
}

fn layers(frame: &mut Frame<'_>, area: Rect, model: &Model, labels: Labels<'_>) {
    let focus = Focus::of(model, Pane::Layers);
    let within = usize::from(area.height.saturating_sub(2));
    let numbered = labels.layers.iter().enumerate().skip(model.layers_top()).take(within);
    let lines: Vec<Line<'_>> = numbered
        .map(|(at, about)| {
            let here = at + 1 == model.layer();
            let size = output::size(about.bytes, 3);
            let text = format!("{}{:>3} {size:>8}  {}", if here { '>' } else { ' ' }, at + 1, about.command);
            let line = Line::from(text);
            if here { line.style(Style::new().add_modifier(selected(focus))) } else { line }
        })
        .collect();
    frame.render_widget(Paragraph::new(lines).block(block(format!(" {} ", labels.subject), focus)), area);
}

fn layer(frame: &mut Frame<'_>, area: Rect, model: &Model, labels: Labels<'_>) {
    let about = model.layer().checked_sub(1).and_then(|at| labels.layers.get(at));
    let text = about.map_or_else(String::new, |about| format!("{}\n{}", about.id, about.command));
    let title = format!(" layer {} of {} ", model.layer(), model.layers());
    frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }).block(block(title, Focus::Elsewhere)), area);
}

fn image(frame: &mut Frame<'_>, area: Rect, labels: Labels<'_>) {
    let lines: Vec<Line<'_>> = labels.figures.iter().map(|line| Line::from(line.as_str())).collect();
    frame.render_widget(Paragraph::new(lines).block(block(" all layers ", Focus::Elsewhere)), area);
}

fn tree(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let focus = Focus::of(model, Pane::Tree);
    let layer = model.layer();
    let what = match model.compare() {
        Compare::Below => format!("changes of layer {layer}"),
        Compare::First => format!("all changes on layer 1, up to layer {layer}"),
    };
    let hidden = if model.filter() == Filter::Differing { ", the rest hidden" } else { "" };
    let title = format!(" {what}{hidden} ");
    let (rows, at) = model.rows();
    let columns = Columns::of(area.width.saturating_sub(2));
    let lines: Vec<Line<'_>> = rows
        .enumerate()
        .map(|(row, line)| {
            let (text, style) = columns.row(model, line);
            Line::from(text).style(if row == at { style.add_modifier(selected(focus)) } else { style })
        })
        .collect();
    frame.render_widget(Paragraph::new(lines).block(block(title, focus)), area);
}

/// Which columns there is room for.
struct Columns {
    mode: bool,
    owner: bool,
    size: bool,
    /// How far names may be moved to the right for the directories that they are in.
    indent_max: usize,
}

impl Columns {
    fn of(width: u16) -> Self {
        Self { mode: width >= 48, owner: width >= 60, size: width >= 28, indent_max: usize::from(width / 2) }
    }

    fn row(&self, model: &Model, Row { id, level, fold }: Row) -> (String, Style) {
        let (mark, style) = match model.state(id) {
            State::Differs(kind) => (kind.letter(), style_of(kind)),
            State::Same | State::Absent => (' ', Style::new()),
        };
        let Some(entry) = model.entry(id) else { return (String::new(), style) };
        let mut text = format!("{mark} ");
        if self.mode {
            text.push_str(&format!("{} ", listing::mode(entry.kind, entry.mode)));
        }
        if self.owner {
            text.push_str(&format!("{:>9} ", format!("{}:{}", entry.uid, entry.gid)));
        }
        if self.size {
            text.push_str(&format!("{:>8} ", output::size(model.size(id), 3)));
        }
        text.extend(std::iter::repeat_n(' ', (2 * level).min(self.indent_max)));
        text.push_str(match fold {
            Fold::Open => "▾ ",
            Fold::Closed => "▸ ",
            Fold::Leaf => "  ",
        });
        let name = if id == NodeId::ROOT { OsStr::new("/") } else { model.tree().name(id) };
        text.push_str(&listing::name(name, entry.link.as_deref()));
        (text, style)
    }
}

fn details(frame: &mut Frame<'_>, area: Rect, model: &Model, labels: Labels<'_>) {
    if area.is_empty() {
        return;
    }
    let id = model.selected();
    let Some(entry) = model.entry(id) else { return };
    let path = listing::escaped(&model.tree().path(id));
    let mut lines = vec![about(entry, model.size(id)), what_else(entry), story(model, id), labels.xattrs.to_owned()];
    lines.retain(|line| !line.is_empty());
    let lines: Vec<Line<'_>> = lines.into_iter().map(Line::from).collect();
    frame.render_widget(
        Paragraph::new(lines).wrap(Wrap { trim: true }).block(block(format!(" {path} "), Focus::Elsewhere)),
        area,
    );
}

/// Tells mode, owner, size and time.
fn about(entry: &Entry, size: u64) -> String {
    let mode = listing::mode(entry.kind, entry.mode);
    let bytes = if size < 1000 { String::new() } else { format!(" ({size})") };
    let time = time(entry.mtime);
    let size = output::size(size, 3);
    format!("{mode} {:04o}  {}:{}  {size}{bytes}  {time}", entry.mode, entry.uid, entry.gid)
}

fn time(time: Timestamp) -> String {
    match jiff::Timestamp::new(time.secs, 0) {
        Ok(known) => known.to_string(),
        // Of years that nobody has a name for.
        Err(_) => format!("{} s", time.secs),
    }
}

fn what_else(entry: &Entry) -> String {
    match (&entry.link, entry.kind) {
        (Some(link), _) => format!("leads to {}", listing::escaped(link.as_encoded_bytes())),
        (None, FileKind::Char | FileKind::Block) => format!("device {},{}", entry.rdev.0, entry.rdev.1),
        _ => String::new(),
    }
}

/// Tells which layer a path is of, and what lower layers have under it.
fn story(model: &Model, id: NodeId) -> String {
    let (shown, lower) = model.story(id);
    let mut text = match shown {
        Some(version) if version.entry.is_some() => format!("of layer {}", version.layer),
        Some(version) => format!("removed by layer {}", version.layer),
        None => String::new(),
    };
    for (at, (layer, entry)) in lower.enumerate() {
        text.push_str(if at == 0 { ", over " } else { ", " });
        let what = match entry.kind {
            FileKind::Regular => output::size(entry.size, 3),
            FileKind::Directory => "directory".to_owned(),
            FileKind::Symlink => "link".to_owned(),
            _ => "special file".to_owned(),
        };
        text.push_str(&format!("layer {layer} ({what})"));
    }
    text
}

fn status(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let text = match model.mode() {
        Mode::Searching(_) => format!("/{}  {}", listing::escaped(model.query().as_bytes()), model.message()),
        _ if !model.message().is_empty() => {
            format!("/{}: {}", listing::escaped(model.query().as_bytes()), model.message())
        }
        _ => "? help  q quit  Tab pane  ←→ fold  / search  u unmodified  a all layers".to_owned(),
    };
    frame.render_widget(Paragraph::new(text), area);
}

fn help(frame: &mut Frame<'_>) {
    let lines: Vec<Line<'_>> = HELP
        .iter()
        .map(|(keys, what)| {
            let keys = Text::styled(format!(" {keys:<14} "), Style::new().add_modifier(Modifier::BOLD));
            Line::from(vec![keys, Text::raw(*what)])
        })
        .chain([Line::from(""), Line::from(" A added   C changed   D removed")])
        .collect();
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_add(2);
    let area = frame.area().centered(Constraint::Max(74), Constraint::Max(height));
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines).block(block(" keys ", Focus::Here)), area);
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::cli::image::explore::model::Action;
    use crate::image::layered::Layered;
    use crate::image::layered::tests::{large, several};

    fn model() -> Model {
        Model::new(Layered::read(&several().stack, |_| {}).unwrap())
    }

    fn screen(model: &mut Model, (width, height): (u16, u16)) -> Vec<String> {
        let about = |n: u64| About { id: format!("id{n}"), command: format!("command {n}"), bytes: n * 1000 };
        let layers = [about(1), about(2), about(3)];
        let figures = ["efficiency 98.76 %".to_owned()];
        let labels = Labels { subject: "app:1", layers: &layers, figures: &figures, xattrs: "xattrs user.a" };
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let draw = |frame: &mut Frame<'_>| {
            let panes = Panes::of(frame.area(), model.pane());
            let (rows, layers) = panes.rows();
            model.fit(rows, layers);
            draw(frame, &panes, model, labels);
        };
        terminal.draw(draw).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let rows = buffer.content.chunks(usize::from(width));
        rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned()).collect()
    }

    #[test]
    fn layers_tree_and_details_stand_side_by_side() {
        let mut model = model();
        for action in [Action::LayerDown, Action::Switch, Action::Down, Action::Toggle, Action::Down] {
            model.act(action);
        }
        // Owners and times are those of whoever runs the test.
        let told: Vec<String> = screen(&mut model, (86, 23))
            .into_iter()
            .map(|line| if line.contains("0644") { "│the owner and the time│".to_owned() } else { line })
            .collect();
        let expected = "\
┌ app:1 ─────────────────────────┐┌ changes of layer 2 ──────────────────────────────┐
│   1     1 kB  command 1        ││  drwxr-xr-x     14 B ▾ /                         │
│>  2     2 kB  command 2        ││C drwxr-xr-x      1 B   ▾ d                       │
│   3     3 kB  command 3        ││D -rw-r--r--      5 B       a                     │
│                                ││A -rw-r--r--      1 B       new                   │
│                                ││D drwxr-xr-x      2 B     ▸ sub                   │
│                                ││C -rw-r--r--      4 B   ▸ dir                     │
│                                ││C -rw-r--r--      2 B     f                       │
└────────────────────────────────┘│D drwxr-xr-x      4 B   ▸ gone                    │
┌ layer 2 of 3 ──────────────────┐│  drwxr-xr-x      3 B   ▸ kept                    │
│id2                             ││  lrwxrwxrwx      0 B     l -> f                  │
│command 2                       ││C -rw-r--r--      4 B     one                     │
│                                ││A -rw-r--r--      4 B     three                   │
│                                ││A -rw-r--r--      4 B     two                     │
│                                │└──────────────────────────────────────────────────┘
│                                │┌ /d/a ────────────────────────────────────────────┐
└────────────────────────────────┘│the owner and the time│
┌ all layers ────────────────────┐│removed by layer 2, over layer 1 (5 B)            │
│efficiency 98.76 %              ││xattrs user.a                                     │
│                                ││                                                  │
│                                ││                                                  │
└────────────────────────────────┘└──────────────────────────────────────────────────┘
? help  q quit  Tab pane  ←→ fold  / search  u unmodified  a all layers";
        let expected: Vec<&str> = expected.lines().collect();
        for (told, expected) in told.iter().zip(&expected).filter(|(told, _)| !told.starts_with("│the owner")) {
            if !expected.contains("the owner") {
                assert_eq!(told, expected);
            }
        }
        assert_eq!(told.len(), expected.len());
    }

    #[test]
    fn no_screen_is_too_small() {
        let mut model = model();
        for width in [1, 2, 5, 20, 27, 45, 59, 60, 61, 100] {
            for height in [1, 2, 3, 5, 12, 14, 20, 40] {
                for action in
                    [Action::Help, Action::Cancel, Action::Switch, Action::Last, Action::OpenAll, Action::First]
                {
                    model.act(action);
                    screen(&mut model, (width, height));
                }
            }
        }
        let tiny = screen(&mut model, (20, 5));
        assert_eq!(tiny[0], "┌ app:1 ───────────┐");
        model.act(Action::Switch);
        let tiny = screen(&mut model, (20, 5));
        assert_eq!(tiny[1], "│A ▾ /             │");
    }

    #[test]
    fn the_help_names_every_key() {
        let mut model = model();
        model.act(Action::Help);
        let text = screen(&mut model, (80, 24)).join("\n");
        for word in ["q Esc Ctrl-C", "A added", "search a name"] {
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn what_is_searched_is_on_the_screen_and_cannot_be_more_than_text() {
        let mut model = model();
        model.act(Action::Search);
        for letter in "ag\u{1b}".chars() {
            model.act(Action::Type(letter));
        }
        assert_eq!(screen(&mut model, (80, 24))[23], "/ag\\u{1b}  not found");
        model.act(Action::Accept);
        assert_eq!(screen(&mut model, (80, 24))[23], "/ag\\u{1b}: not found");
    }

    #[test]
    fn a_hundred_thousand_paths_are_no_longer_to_wait_for() {
        let mut model = Model::new(large(200, 500));
        let keys = [
            Action::LayerDown,
            Action::LayerUp,
            Action::LayerDown,
            Action::Switch,
            Action::OpenAll,
            Action::Last,
            Action::Up,
            Action::Filter,
            Action::Compare,
            Action::Search,
            Action::Type('x'),
            Action::Accept,
            Action::Next,
            Action::CloseAll,
        ];
        for action in keys {
            let begin = Instant::now();
            model.act(action);
            screen(&mut model, (120, 50));
            let took = begin.elapsed();
            println!("{action:?}: {took:?}");
            // A few milliseconds where nobody else has the processor.
            assert!(took < Duration::from_millis(250), "{action:?} took {took:?}");
        }
    }
}
