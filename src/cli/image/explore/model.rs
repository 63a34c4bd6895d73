//! What the interface shows, without a terminal: which layer and which path are selected, what is folded, what was searched.
//!
//! Whatever is done takes time for all paths at most, and nothing is formatted here: the view asks for the rows that it
//! shows.

use crate::image::layered::{Entry, Layered, NodeId, Span, State, Version, View};
use crate::layer::attr::FileKind;

/// What can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
    /// Unfold the directory, or go to the first in it.
    Open,
    /// Fold the directory, or go to the one that this is in.
    Close,
    Toggle,
    OpenAll,
    CloseAll,
    /// Go to the other pane.
    Switch,
    LayerUp,
    LayerDown,
    /// Compare with the layer below, or with the first.
    Compare,
    /// Hide what is as it was, or show it.
    Filter,
    Search,
    Type(char),
    Erase,
    Accept,
    Cancel,
    Next,
    Previous,
    Help,
}

/// The pane that keys are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pane {
    Layers,
    Tree,
}

/// What the tree is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    /// The layers below the selected one: its own changes.
    Below,
    /// The first layer alone: all changes on top of it.
    First,
}

/// Which paths are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    All,
    Differing,
}

/// What keys mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Normal,
    /// A search is being typed; it began at this path.
    Searching(NodeId),
    Help,
}

/// A path of the tree, in the order in which it is shown.
#[derive(Debug, Clone, Copy)]
struct Line {
    id: NodeId,
    level: usize,
    /// Where in the order what comes after all that is in it is.
    end: usize,
}

/// A row of the tree pane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    pub id: NodeId,
    /// How many directories it is in.
    pub level: usize,
    pub fold: Fold,
}

/// Whether what is in a directory is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fold {
    Open,
    Closed,
    /// There is nothing in it.
    Leaf,
}

/// What the interface shows.
#[derive(Debug)]
pub struct Model {
    tree: Layered,
    view: View,
    layer: usize,
    compare: Compare,
    filter: Filter,
    pane: Pane,
    mode: Mode,
    /// All paths that the filter lets through, folded or not.
    order: Vec<Line>,
    /// Those of the rows, in `order`.
    rows: Vec<usize>,
    /// Which directories are folded, by number.
    folds: Vec<Fold>,
    /// The selected row.
    cursor: usize,
    /// The first row that is on the screen, and how many are.
    top: usize,
    page: usize,
    layers_top: usize,
    query: String,
    /// What became of the last search, if there is something to say.
    message: &'static str,
}

impl Model {
    /// Begins with the first layer.
    pub fn new(tree: Layered) -> Self {
        let layer = tree.layers().min(1);
        let view = tree.view(Span { since: 0, upto: layer });
        let folds = vec![Fold::Closed; tree.len()];
        let mut model = Self {
            tree,
            view,
            layer,
            compare: Compare::Below,
            filter: Filter::All,
            pane: Pane::Layers,
            mode: Mode::Normal,
            order: Vec::new(),
            rows: Vec::new(),
            folds,
            cursor: 0,
            top: 0,
            page: 1,
            layers_top: 0,
            query: String::new(),
            message: "",
        };
        model.put_in_order();
        model.fold_all(Fold::Closed);
        model
    }

    pub fn layer(&self) -> usize {
        self.layer
    }

    pub fn layers(&self) -> usize {
        self.tree.layers()
    }

    pub fn compare(&self) -> Compare {
        self.compare
    }

    pub fn filter(&self) -> Filter {
        self.filter
    }

    pub fn pane(&self) -> Pane {
        self.pane
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    pub fn tree(&self) -> &Layered {
        &self.tree
    }

    pub fn query(&self) -> &str {
        &self.query
    }

    pub fn message(&self) -> &'static str {
        self.message
    }

    pub fn span(&self) -> Span {
        self.view.span()
    }

    /// Returns how a path fares.
    pub fn state(&self, id: NodeId) -> State {
        self.view.state(id)
    }

    /// Returns the bytes of a file, or of all that is in a directory.
    pub fn size(&self, id: NodeId) -> u64 {
        match self.entry(id) {
            // One of several names, all of which show the size; the directories count it once.
            Some(entry) if entry.kind == FileKind::Regular => entry.size,
            _ => self.view.size(id),
        }
    }

    /// Returns what is at a path, or was.
    pub fn entry(&self, id: NodeId) -> Option<&Entry> {
        self.tree.shown(&self.view, id)
    }

    /// Returns the selected path.
    pub fn selected(&self) -> NodeId {
        self.line(self.cursor).map_or(NodeId::ROOT, |line| line.id)
    }

    /// Returns the version of the selected path that is shown, and those of lower layers that it is over, the nearest first.
    pub fn story(&self, id: NodeId) -> (Option<&Version>, impl Iterator<Item = (usize, &Entry)>) {
        let shown = self.tree.version(id, self.span().upto);
        let below = shown.map_or(0, |version| version.layer);
        let lower = self.tree.versions(id).iter().rev().filter(move |version| version.layer < below);
        (shown, lower.filter_map(|version| Some((version.layer, version.entry.as_ref()?))))
    }

    /// Returns the rows that are on the screen, and which of them is selected.
    pub fn rows(&self) -> (impl Iterator<Item = Row>, usize) {
        let shown = self.rows.iter().skip(self.top).take(self.page);
        let row = |at: &usize| {
            let line = self.order.get(*at)?;
            let fold = if line.end == at + 1 { Fold::Leaf } else { self.folded(line.id) };
            Some(Row { id: line.id, level: line.level, fold })
        };
        (shown.filter_map(row), self.cursor - self.top)
    }

    /// Returns the first layer that is on the screen, counted from 0.
    pub fn layers_top(&self) -> usize {
        self.layers_top
    }

    /// Notes how many rows and how many layers the screen shows, and scrolls so that the selected ones are among them.
    pub fn fit(&mut self, rows: usize, layers: usize) {
        self.page = rows.max(1);
        self.top = scrolled(self.top, self.cursor, self.page, self.rows.len());
        self.layers_top = scrolled(self.layers_top, self.layer.saturating_sub(1), layers.max(1), self.layers());
    }

    /// Does something.
    pub fn act(&mut self, action: Action) {
        // What was said of a search stays when it is typed to its end.
        if action != Action::Accept {
            self.message = "";
        }
        match action {
            Action::Up => self.go(-1),
            Action::Down => self.go(1),
            Action::PageUp => self.go(-self.page_step()),
            Action::PageDown => self.go(self.page_step()),
            Action::First => self.go(isize::MIN),
            Action::Last => self.go(isize::MAX),
            Action::Open => self.unfold_or_enter(),
            Action::Close => self.fold_or_leave(),
            Action::Toggle => self.toggle(),
            Action::OpenAll => self.fold_all(Fold::Open),
            Action::CloseAll => self.fold_all(Fold::Closed),
            Action::Switch => self.pane = if self.pane == Pane::Tree { Pane::Layers } else { Pane::Tree },
            Action::LayerUp => self.select_layer(self.layer.saturating_sub(1)),
            Action::LayerDown => self.select_layer(self.layer + 1),
            Action::Compare => {
                self.compare = if self.compare == Compare::Below { Compare::First } else { Compare::Below };
                self.look();
            }
            Action::Filter => {
                self.filter = if self.filter == Filter::All { Filter::Differing } else { Filter::All };
                self.look();
            }
            Action::Search => {
                self.query.clear();
                self.mode = Mode::Searching(self.selected());
                self.pane = Pane::Tree;
            }
            Action::Type(letter) => {
                self.query.push(letter);
                self.search_from_start();
            }
            Action::Erase => {
                self.query.pop();
                self.search_from_start();
            }
            Action::Accept => self.mode = Mode::Normal,
            Action::Cancel => {
                if let Mode::Searching(start) = self.mode {
                    self.query.clear();
                    self.select(start);
                }
                self.mode = Mode::Normal;
            }
            Action::Next => self.search(Way::Down, self.place(self.selected()) + 1),
            Action::Previous => self.search(Way::Up, self.place(self.selected())),
            Action::Help => self.mode = Mode::Help,
        }
    }

    fn page_step(&self) -> isize {
        isize::try_from(self.page.saturating_sub(1).max(1)).unwrap_or(isize::MAX)
    }

    /// Goes so many rows or layers down.
    fn go(&mut self, by: isize) {
        match self.pane {
            Pane::Layers => self.select_layer(self.layer.saturating_add_signed(by).max(1)),
            Pane::Tree => {
                self.cursor = self.cursor.saturating_add_signed(by).min(self.rows.len().saturating_sub(1));
            }
        }
    }

    fn select_layer(&mut self, layer: usize) {
        let layer = layer.clamp(self.layers().min(1), self.layers());
        if layer != self.layer {
            self.layer = layer;
            self.look();
        }
    }

    /// Looks at the tree anew: other layers are shown, or compared.
    fn look(&mut self) {
        let selected = self.selected();
        let since = match self.compare {
            Compare::Below => self.layer.saturating_sub(1),
            // Of the first layer alone all is new, however it is looked at.
            Compare::First => self.layer.saturating_sub(1).min(1),
        };
        let span = Span { since, upto: self.layer };
        if span != self.view.span() {
            self.view = self.tree.view(span);
        }
        self.put_in_order();
        self.fold(selected);
    }

    /// Puts the paths that are shown in order.
    fn put_in_order(&mut self) {
        self.order.clear();
        let mut todo = vec![(NodeId::ROOT, 0)];
        // The directories that the next path may be in.
        let mut within: Vec<usize> = Vec::new();
        while let Some((id, level)) = todo.pop() {
            let shown = match self.state(id) {
                State::Absent => false,
                State::Same => self.filter == Filter::All || id == NodeId::ROOT,
                State::Differs(_) => true,
            };
            if !shown {
                continue;
            }
            self.end_lines(&mut within, level);
            within.push(self.order.len());
            self.order.push(Line { id, level, end: 0 });
            todo.extend(self.tree.children(id).iter().rev().map(|child| (*child, level + 1)));
        }
        self.end_lines(&mut within, 0);
    }

    /// Ends the lines of `within` that are not above `level`.
    fn end_lines(&mut self, within: &mut Vec<usize>, level: usize) {
        let end = self.order.len();
        while within.len() > level {
            if let Some(line) = within.pop().and_then(|at| self.order.get_mut(at)) {
                line.end = end;
            }
        }
    }

    fn folded(&self, id: NodeId) -> Fold {
        self.folds.get(id.index()).copied().unwrap_or(Fold::Leaf)
    }

    fn is_open(&self, id: NodeId) -> bool {
        self.folded(id) == Fold::Open
    }

    fn set_fold(&mut self, id: NodeId, now: Fold) {
        if let Some(fold) = self.folds.get_mut(id.index()) {
            *fold = now;
        }
    }

    /// Finds the rows, and selects that of `selected` or, where it has none, of the directory that it is in.
    fn fold(&mut self, selected: NodeId) {
        self.rows.clear();
        let mut at = 0;
        while let Some(line) = self.order.get(at) {
            self.rows.push(at);
            at = if self.is_open(line.id) { at + 1 } else { line.end.max(at + 1) };
        }
        self.cursor = 0;
        let mut id = Some(selected);
        while let Some(one) = id {
            let place = self.place(one);
            if self.order.get(place).is_some_and(|line| line.id == one)
                && let Ok(row) = self.rows.binary_search(&place)
            {
                self.cursor = row;
                return;
            }
            id = self.tree.parent(one);
        }
    }

    /// Returns where in the order a path is; its end for one that is not there.
    fn place(&self, id: NodeId) -> usize {
        self.order.iter().position(|line| line.id == id).unwrap_or(self.order.len())
    }

    fn line(&self, row: usize) -> Option<&Line> {
        self.order.get(*self.rows.get(row)?)
    }

    /// Returns whether something is shown in a path, or would be.
    fn has_rows(&self, row: usize) -> bool {
        let at = self.rows.get(row).copied().unwrap_or_default();
        self.order.get(at).is_some_and(|line| line.end > at + 1)
    }

    fn toggle(&mut self) {
        let id = self.selected();
        if self.has_rows(self.cursor) {
            self.set_fold(id, if self.is_open(id) { Fold::Closed } else { Fold::Open });
            self.fold(id);
        }
    }

    fn unfold_or_enter(&mut self) {
        if self.pane == Pane::Layers {
            self.pane = Pane::Tree;
        } else if self.is_open(self.selected()) && self.has_rows(self.cursor) {
            self.go(1);
        } else {
            self.toggle();
        }
    }

    fn fold_or_leave(&mut self) {
        let id = self.selected();
        if self.pane == Pane::Layers {
            return;
        }
        if self.is_open(id) && self.has_rows(self.cursor) {
            self.toggle();
        } else if let Some(parent) = self.tree.parent(id) {
            self.select(parent);
        }
    }

    /// Folds or unfolds all directories but the root, which stays open.
    fn fold_all(&mut self, now: Fold) {
        let selected = self.selected();
        self.folds.fill(now);
        self.set_fold(NodeId::ROOT, Fold::Open);
        self.fold(selected);
    }

    /// Selects a path, and unfolds what it is in.
    fn select(&mut self, id: NodeId) {
        let mut folded = false;
        let mut above = self.tree.parent(id);
        while let Some(parent) = above {
            folded |= !self.is_open(parent);
            self.set_fold(parent, Fold::Open);
            above = self.tree.parent(parent);
        }
        let place = self.place(id);
        match self.rows.binary_search(&place) {
            Ok(row) if !folded => self.cursor = row,
            _ => self.fold(id),
        }
    }

    fn search_from_start(&mut self) {
        let Mode::Searching(start) = self.mode else { return };
        self.select(start);
        self.search(Way::Down, self.place(start));
    }

    /// Selects the first path that has what was searched in its name, from a place of the order on down, or above it on up;
    /// at the end it goes on from the other one.
    fn search(&mut self, way: Way, from: usize) {
        let Some(query) = Query::new(&self.query) else { return };
        let matches = |at: &usize| self.order.get(*at).is_some_and(|line| query.matches(&self.tree, line.id));
        let (from, end) = (from.min(self.order.len()), self.order.len());
        let found = match way {
            Way::Down => (from..end).chain(0..from).find(matches),
            Way::Up => (0..from).rev().chain((from..end).rev()).find(matches),
        };
        match found.and_then(|at| self.order.get(at)) {
            Some(line) => self.select(line.id),
            None => self.message = "not found",
        }
    }
}

/// Scrolls so that `at` is one of the `page` lines from the first on, and that no line stays empty without need.
fn scrolled(top: usize, at: usize, page: usize, lines: usize) -> usize {
    top.min(at).max((at + 1).saturating_sub(page)).min(lines.saturating_sub(page))
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Down,
    Up,
}

/// What is searched: part of a name or, where a slash is in it, of a path.
struct Query {
    text: Vec<u8>,
    /// Whether small letters stand for capital ones too: where none was typed.
    any_case: bool,
    path: bool,
}

impl Query {
    fn new(text: &str) -> Option<Self> {
        let any_case = !text.bytes().any(|byte| byte.is_ascii_uppercase());
        (!text.is_empty()).then(|| Self { text: text.into(), any_case, path: text.contains('/') })
    }

    fn matches(&self, tree: &Layered, id: NodeId) -> bool {
        if self.path {
            return self.is_in(&tree.path(id));
        }
        self.is_in(tree.name(id).as_encoded_bytes())
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        let same = |window: &[u8]| {
            if self.any_case { window.eq_ignore_ascii_case(&self.text) } else { window == self.text }
        };
        bytes.windows(self.text.len()).any(same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::layered::tests::{fixture, several};

    fn model() -> Model {
        let mut model = Model::new(Layered::read(&several().stack, |_| {}).unwrap());
        model.fit(100, 100);
        model.act(Action::Switch);
        model
    }

    /// The rows: mark, fold and name, that of the selected one in brackets.
    fn rows(model: &Model) -> Vec<String> {
        let (rows, at) = model.rows();
        rows.enumerate()
            .map(|(row, Row { id, level, fold })| {
                let mark = match model.state(id) {
                    State::Differs(kind) => kind.letter(),
                    _ => ' ',
                };
                let fold = match fold {
                    Fold::Open => "-",
                    Fold::Closed => "+",
                    Fold::Leaf => "",
                };
                let name = format!("{}/{}", ".".repeat(level), model.tree().name(id).display());
                if row == at { format!("{mark} [{fold}{name}]") } else { format!("{mark} {fold}{name}") }
            })
            .collect()
    }

    fn act(model: &mut Model, actions: &[Action]) -> Vec<String> {
        for action in actions {
            model.act(*action);
        }
        rows(model)
    }

    fn path(model: &Model) -> String {
        String::from_utf8(model.tree().path(model.selected())).unwrap()
    }

    fn search(model: &mut Model, text: &str) -> String {
        model.act(Action::Search);
        text.chars().for_each(|letter| model.act(Action::Type(letter)));
        path(model)
    }

    #[test]
    fn a_layer_shows_what_is_there_after_it_and_what_it_has_changed() {
        let mut model = model();
        let first = ["A [-/]", "A +./d", "A +./dir", "A ./f", "A +./gone", "A +./kept", "A ./l", "A ./one"];
        assert_eq!(rows(&model), first);
        assert_eq!(
            act(&mut model, &[Action::LayerDown]),
            [
                "  [-/]",
                "C +./d",
                "C +./dir",
                "C ./f",
                "D +./gone",
                "  +./kept",
                "  ./l",
                "C ./one",
                "A ./three",
                "A ./two"
            ]
        );
        assert_eq!(
            act(&mut model, &[Action::LayerDown, Action::Filter]),
            ["  [-/]", "C +./f", "A +./gone", "C +./kept", "D ./l"]
        );
        // A layer more there is not.
        assert_eq!(act(&mut model, &[Action::LayerDown]).len(), 5);
        assert_eq!(act(&mut model, &[Action::Filter, Action::LayerUp, Action::LayerUp, Action::LayerUp]), first);
    }

    #[test]
    fn all_layers_together_are_compared_with_the_first() {
        let mut model = model();
        let together = act(&mut model, &[Action::LayerDown, Action::LayerDown, Action::Compare]);
        assert_eq!(
            together,
            [
                "  [-/]",
                "C +./d",
                "C +./dir",
                "C +./f",
                "C +./gone",
                "C +./kept",
                "D ./l",
                "C ./one",
                "A ./three",
                "A ./two"
            ]
        );
        assert_eq!(act(&mut model, &[Action::Compare])[1], "  +./d");
    }

    #[test]
    fn directories_are_folded_and_left_with_what_is_selected() {
        let mut model = model();
        let open =
            act(&mut model, &[Action::Down, Action::Open, Action::Open, Action::Down, Action::Open, Action::Down]);
        assert_eq!(open[..5], ["A -/", "A -./d", "A ../a", "A -../sub", "A [.../b]"]);
        assert_eq!(act(&mut model, &[Action::Close])[3], "A [-../sub]");
        assert_eq!(act(&mut model, &[Action::Close])[3], "A [+../sub]");
        // What is folded away gives the selection to what it is in.
        act(&mut model, &[Action::Open, Action::Open]);
        assert_eq!(path(&model), "/d/sub/b");
        assert_eq!(act(&mut model, &[Action::CloseAll])[1], "A [+./d]");
        let all = act(&mut model, &[Action::OpenAll, Action::Last]);
        assert_eq!((all.len(), all.last().unwrap().as_str()), (16, "A [./one]"));
        act(&mut model, &[Action::First, Action::Toggle]);
        assert_eq!(rows(&model), ["A [+/]"]);
    }

    #[test]
    fn the_selection_stays_where_the_path_does() {
        let mut model = model();
        assert_eq!(search(&mut model, "sub/b"), "/d/sub/b");
        act(&mut model, &[Action::Accept, Action::LayerDown]);
        assert_eq!(path(&model), "/d/sub/b");
        // It was removed by the layer before.
        act(&mut model, &[Action::LayerDown]);
        assert_eq!(path(&model), "/d");
    }

    #[test]
    fn a_search_goes_on_while_it_is_typed_and_finds_what_is_folded() {
        let mut model = model();
        assert_eq!(search(&mut model, "in"), "/dir/in");
        model.act(Action::Type('x'));
        assert_eq!((path(&model).as_str(), model.message()), ("/", "not found"));
        model.act(Action::Erase);
        assert_eq!(path(&model), "/dir/in");
        act(&mut model, &[Action::Accept]);
        assert_eq!(model.mode(), Mode::Normal);
        assert_eq!(search(&mut model, "/gone/"), "/gone/x");
        act(&mut model, &[Action::Accept, Action::Next]);
        assert_eq!(path(&model), "/gone/x/y");
        act(&mut model, &[Action::Next, Action::Next]);
        assert_eq!(path(&model), "/gone/x");
        act(&mut model, &[Action::Previous]);
        assert_eq!(path(&model), "/gone/z");
        // Who gives it up is where they were.
        assert_eq!(search(&mut model, "one"), "/one");
        act(&mut model, &[Action::Cancel]);
        assert_eq!(path(&model), "/gone/z");
        assert_eq!(search(&mut model, "ONE"), "/gone/z");
        assert_eq!(model.message(), "not found");
        // With nothing typed nothing is searched.
        act(&mut model, &[Action::Erase, Action::Erase, Action::Erase, Action::Erase, Action::Accept, Action::Next]);
        assert_eq!(path(&model), "/gone/z");
    }

    #[test]
    fn a_path_tells_what_it_is_over() {
        let mut model = model();
        act(&mut model, &[Action::LayerDown, Action::LayerDown]);
        let story = |model: &mut Model, name: &str| {
            search(model, name);
            let (shown, lower) = model.story(model.selected());
            (shown.map(|version| version.layer), lower.map(|(layer, _)| layer).collect::<Vec<_>>())
        };
        assert_eq!(story(&mut model, "/f"), (Some(3), vec![2, 1]));
        assert_eq!(story(&mut model, "/gone"), (Some(3), vec![1]));
        assert_eq!(story(&mut model, "/kept/k"), (Some(1), vec![]));
        assert_eq!(story(&mut model, "/l"), (Some(3), vec![1]));
    }

    #[test]
    fn the_screen_follows_what_is_selected() {
        let names: Vec<String> = (0..50).map(|n| format!("{n:02}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut model = Model::new(Layered::read(&fixture(&[&names]).stack, |_| {}).unwrap());
        model.act(Action::Switch);
        model.fit(10, 3);
        for (action, top, at) in [
            (Action::PageDown, "", 9),
            (Action::Down, "00", 9),
            (Action::Last, "40", 9),
            (Action::Up, "40", 8),
            (Action::PageUp, "39", 0),
            (Action::First, "", 0),
        ] {
            model.act(action);
            model.fit(10, 3);
            let first = model.rows().0.next().unwrap().id;
            assert_eq!((model.tree().name(first).to_str().unwrap(), model.rows().1), (top, at), "{action:?}");
        }
    }
}
