//! Which key does what.

use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::model::{Action, Mode};

/// What an event asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    Quit,
    Do(Action),
    /// Nothing; the screen may have another size.
    Nothing,
}

/// The keys, for people.
pub const HELP: [(&str, &str); 14] = [
    ("↑ ↓  k j", "one up, one down"),
    ("PgUp PgDn", "a page up, a page down"),
    ("Home End  g G", "the first, the last"),
    ("Tab", "the other pane"),
    ("[ ]", "the layer above, below, from either pane"),
    ("→ ←  l h", "unfold, fold; into a directory, out of it"),
    ("Space Enter", "fold or unfold"),
    ("e c", "unfold all, fold all"),
    ("a", "what all layers change on the first one, or this one"),
    ("u", "hide what is unmodified, or show it"),
    ("/", "search a name, or a path where it has a slash"),
    ("n N", "the next one found, the one before"),
    ("?", "this help"),
    ("q Esc Ctrl-C", "quit"),
];

/// Reads an event.
pub fn wish(event: &Event, mode: Mode) -> Wish {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => pressed(key, mode),
        _ => Wish::Nothing,
    }
}

fn pressed(key: &KeyEvent, mode: Mode) -> Wish {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match (key.code, mode) {
        (KeyCode::Char('c'), _) if control => Wish::Quit,
        (KeyCode::Char(_), _) if control || key.modifiers.contains(KeyModifiers::ALT) => Wish::Nothing,
        // Whatever was pressed, the help goes.
        (_, Mode::Help) => Wish::Do(Action::Cancel),
        (code, Mode::Searching(_)) => typed(code),
        (code, Mode::Normal) => normal(code),
    }
}

fn typed(code: KeyCode) -> Wish {
    Wish::Do(match code {
        KeyCode::Char(letter) => Action::Type(letter),
        KeyCode::Backspace => Action::Erase,
        KeyCode::Enter => Action::Accept,
        KeyCode::Esc => Action::Cancel,
        _ => return Wish::Nothing,
    })
}

fn normal(code: KeyCode) -> Wish {
    Wish::Do(match code {
        KeyCode::Char('q') | KeyCode::Esc => return Wish::Quit,
        KeyCode::Up | KeyCode::Char('k') => Action::Up,
        KeyCode::Down | KeyCode::Char('j') => Action::Down,
        KeyCode::PageUp => Action::PageUp,
        KeyCode::PageDown => Action::PageDown,
        KeyCode::Home | KeyCode::Char('g') => Action::First,
        KeyCode::End | KeyCode::Char('G') => Action::Last,
        KeyCode::Right | KeyCode::Char('l') => Action::Open,
        KeyCode::Left | KeyCode::Char('h') => Action::Close,
        KeyCode::Enter | KeyCode::Char(' ') => Action::Toggle,
        KeyCode::Char('e') => Action::OpenAll,
        KeyCode::Char('c') => Action::CloseAll,
        KeyCode::Tab | KeyCode::BackTab => Action::Switch,
        KeyCode::Char('[') => Action::LayerUp,
        KeyCode::Char(']') => Action::LayerDown,
        KeyCode::Char('a') => Action::Compare,
        KeyCode::Char('u') => Action::Filter,
        KeyCode::Char('/') => Action::Search,
        KeyCode::Char('n') => Action::Next,
        KeyCode::Char('N') => Action::Previous,
        KeyCode::Char('?') => Action::Help,
        _ => return Wish::Nothing,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::layered::NodeId;

    fn press(code: KeyCode, modifiers: KeyModifiers, mode: Mode) -> Wish {
        wish(&Event::Key(KeyEvent::new(code, modifiers)), mode)
    }

    #[test]
    fn a_key_means_what_the_mode_says() {
        let (none, control) = (KeyModifiers::NONE, KeyModifiers::CONTROL);
        let searching = Mode::Searching(NodeId::ROOT);
        for (code, modifiers, mode, wish) in [
            (KeyCode::Char('q'), none, Mode::Normal, Wish::Quit),
            (KeyCode::Char('q'), none, searching, Wish::Do(Action::Type('q'))),
            (KeyCode::Char('q'), none, Mode::Help, Wish::Do(Action::Cancel)),
            (KeyCode::Esc, none, Mode::Normal, Wish::Quit),
            (KeyCode::Esc, none, searching, Wish::Do(Action::Cancel)),
            (KeyCode::Char('c'), control, Mode::Normal, Wish::Quit),
            (KeyCode::Char('c'), control, searching, Wish::Quit),
            (KeyCode::Char('c'), control, Mode::Help, Wish::Quit),
            (KeyCode::Char('c'), none, Mode::Normal, Wish::Do(Action::CloseAll)),
            (KeyCode::Char('u'), control, searching, Wish::Nothing),
            (KeyCode::Char('G'), KeyModifiers::SHIFT, Mode::Normal, Wish::Do(Action::Last)),
            (KeyCode::F(5), none, Mode::Normal, Wish::Nothing),
        ] {
            assert_eq!(press(code, modifiers, mode), wish, "{code:?} {modifiers:?} {mode:?}");
        }
        assert_eq!(wish(&Event::Resize(1, 1), Mode::Normal), Wish::Nothing);
    }
}
