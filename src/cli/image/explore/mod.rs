//! `explore`: the layers of an image, and the tree that they make, in the terminal.
//!
//! [`keys`] says what a key asks for, [`model`] does it, and [`view`] draws what the model is then; here is what they cannot
//! know: the terminal, and what is read from the layers while somebody looks.

mod keys;
mod model;
mod view;

use std::ffi::OsStr;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event;
use rustix::event::{PollFd, PollFlags, Timespec};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::progress::Bars;
use super::subject::{Subject, commands};
use super::{listing, open_store, output, store_arg, word};
use crate::cli::exit::{Exit, Failure};
use crate::image::analyze::analyze;
use crate::image::digest;
use crate::image::layered::{Layered, NodeId};
use crate::image::manifest::Image;
use crate::image::stack::Stack;
use crate::image::store::Store;
use keys::Wish;
use model::Model;
use view::{Labels, Panes};

/// How long a key is waited for, before it is looked whether something else has happened.
const TURN: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// How long an orderly end may take after a signal.
const GRACE: Duration = Duration::from_secs(2);

/// What is known of a layer besides what is in it: text that can be printed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// The beginning of its blob's digest; of the writable layer the container's id.
    pub id: String,
    /// What has made it, as the history says it.
    pub command: String,
    /// The bytes of its regular files.
    pub bytes: u64,
}

pub fn command() -> Command {
    Command::new("explore")
        .about("Shows the layers of an image or a container, and the tree that they make, in the terminal")
        .long_about(
            "Shows the layers of an image or a container in the terminal, and the tree as of the selected one, with what that \
             layer has added (A), changed (C) and removed (D). Press ? for the keys. What cannot be printed in a name is \
             escaped.",
        )
        .arg(Arg::new("IMAGE").required(true).help("An image or a container: its name, or the first digits of its id or digest"))
        .arg(store_arg())
}

pub fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        let reason = "explore: there is no terminal; unionfs-rs tree prints what an image has";
        return Err(Failure::new(Exit::Failed, reason));
    }
    let store = open_store(matches)?;
    let text = word(matches, "IMAGE");
    let subject = Subject::find(&store, text)?;
    let stack = subject.stack(&store, text)?;
    let tree = Layered::read(&stack, |_| {}).map_err(|error| error.within(text))?;
    if tree.is_empty() {
        return Err(Failure::new(Exit::Failed, format!("{text}: it has no layers")));
    }
    let image = match &subject {
        Subject::Image(image) => Some((**image).clone()),
        // It may be gone; the container is there all the same.
        Subject::Container(container) => store.find(&container.config.image).ok().map(|found| found.image),
    };
    let layers = about(&store, &subject, image.as_ref(), &tree)?;
    let figures = measure(store, image);
    let explorer =
        Explorer { stack, subject: listing::escaped(text.as_bytes()), layers, model: Model::new(tree), figures };
    // What is logged from here on would be written over the screen.
    log::set_max_level(log::LevelFilter::Off);
    explorer.run()
}

/// Tells of the layers, lowest first.
fn about(store: &Store, subject: &Subject, image: Option<&Image>, tree: &Layered) -> Result<Vec<About>, Failure> {
    let trees = match subject {
        Subject::Image(image) => store.trees(image, &Bars::new("unpacking"))?,
        Subject::Container(container) => store.trees_of(container)?,
    };
    let commands = image.map(commands).unwrap_or_default();
    let mut layers = Vec::new();
    for (at, tree) in trees.iter().enumerate() {
        let layer = image.and_then(|image| image.layers.get(at));
        layers.push(About {
            id: layer.map_or_else(String::new, |layer| digest::short(layer.blob.digest()).to_owned()),
            command: shown(commands.get(at).map_or("", String::as_str)),
            bytes: tree.facts.bytes,
        });
    }
    if let Subject::Container(container) = subject {
        let id = container.config.id.clone();
        layers.push(About {
            command: "what was written to the container".into(),
            id,
            bytes: tree.bytes_of(tree.layers()),
        });
    }
    Ok(layers)
}

/// Writes a command in one line, without what builders put before each.
fn shown(command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let line = words.join(" ");
    let bare = line.strip_prefix("/bin/sh -c ").unwrap_or(&line);
    listing::escaped(bare.strip_prefix("#(nop) ").unwrap_or(bare).as_bytes())
}

/// Measures an image beside, since all its layers must be unpacked for that.
fn measure(store: Store, image: Option<Image>) -> Figures {
    let (sender, measured) = mpsc::channel();
    let Some(image) = image else {
        return Figures { lines: vec!["the image is gone".to_owned()], measured };
    };
    std::thread::spawn(move || {
        let lines = match analyze(&store, &image) {
            Ok(analysis) => vec![
                format!("efficiency {:.2} %", analysis.efficiency * 100.0),
                format!("wasted     {}", output::size(analysis.wasted_bytes, 3)),
                format!("hidden     {}", output::size(analysis.hidden_bytes, 3)),
            ],
            Err(error) => vec![listing::escaped(error.to_string().as_bytes())],
        };
        let _ = sender.send(lines); // Nobody looks any more.
    });
    Figures { lines: vec!["being measured ...".to_owned()], measured }
}

/// How much of the layers is for nothing, as far as it is known.
struct Figures {
    lines: Vec<String>,
    measured: Receiver<Vec<String>>,
}

/// What is looked at.
struct Explorer {
    stack: Stack,
    subject: String,
    layers: Vec<About>,
    model: Model,
    figures: Figures,
}

impl Explorer {
    /// Takes the terminal, and gives it back whatever happens: a panic does so by the hook that ratatui sets.
    fn run(mut self) -> Result<Exit, Failure> {
        let failed = |error: io::Error| Failure::new(Exit::Failed, format!("the terminal: {error}"));
        let told = heed_signals().map_err(failed)?;
        let ended = ratatui::try_init().and_then(|mut terminal| self.serve(&mut terminal, &told));
        let restored = ratatui::try_restore();
        match ended.map_err(failed)? {
            End::Quit => restored.map(|()| Exit::Done).map_err(failed),
            End::Told => Err(Failure::new(Exit::Failed, "explore: ended by a signal, or the terminal is gone")),
        }
    }

    fn serve(&mut self, terminal: &mut DefaultTerminal, told: &AtomicBool) -> io::Result<End> {
        let mut xattrs = Xattrs::default();
        loop {
            terminal.draw(|frame| {
                let panes = Panes::of(frame.area(), self.model.pane());
                let (rows, layers) = panes.rows();
                self.model.fit(rows, layers);
                let labels = Labels {
                    subject: &self.subject,
                    layers: &self.layers,
                    figures: &self.figures.lines,
                    xattrs: xattrs.of(&self.stack, &self.model),
                };
                view::draw(frame, &panes, &self.model, labels);
            })?;
            loop {
                // Relaxed: nothing but the flag itself is looked at.
                if told.load(Ordering::Relaxed) {
                    return Ok(End::Told);
                }
                match key() {
                    Key::Perhaps if event::poll(Duration::ZERO)? => break,
                    Key::Perhaps => {}
                    Key::Never => return Ok(End::Told),
                }
                if let Ok(lines) = self.figures.measured.try_recv() {
                    self.figures.lines = lines;
                    break;
                }
            }
            // Those that have come while it was drawn are all done before it is drawn again.
            while event::poll(Duration::ZERO)? {
                match keys::wish(&event::read()?, self.model.mode()) {
                    Wish::Quit => return Ok(End::Quit),
                    Wish::Do(action) => self.model.act(action),
                    Wish::Nothing => {}
                }
            }
        }
    }
}

/// Why it is over.
enum End {
    Quit,
    /// By a signal, or since the terminal is gone.
    Told,
}

/// Whether there may be something to read.
enum Key {
    Perhaps,
    Never,
}

/// Waits for a key, a signal such as that of another size, or the end of [`TURN`].
///
/// crossterm would wait, too, but never come back from a terminal that is gone.
fn key() -> Key {
    let stdin = io::stdin();
    let mut polled = [PollFd::new(&stdin, PollFlags::IN)];
    // An error is a signal, or shows itself when the terminal is read.
    let ready = rustix::event::poll(&mut polled, Some(&TURN)).unwrap_or_default();
    let gone = ready > 0 && polled.iter().any(|fd| fd.revents().intersects(PollFlags::HUP | PollFlags::ERR));
    if gone { Key::Never } else { Key::Perhaps }
}

/// Returns what says that a signal has told the process to end.
fn heed_signals() -> io::Result<Arc<AtomicBool>> {
    let told = Arc::new(AtomicBool::new(false));
    let heard = told.clone();
    let mut signals = Signals::new([SIGTERM, SIGHUP, SIGINT])?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            heard.store(true, Ordering::Relaxed); // Relaxed: nothing goes with the flag.
            std::thread::sleep(GRACE);
            // The terminal went while it was read.
            let _ = ratatui::try_restore(); // There may be none any more.
            std::process::exit(Exit::Failed.code().into());
        }
    });
    Ok(told)
}

/// The names of the xattrs of the selected path, which are read when they are shown.
#[derive(Default)]
struct Xattrs {
    of: Option<(NodeId, usize)>,
    text: String,
}

impl Xattrs {
    fn of(&mut self, stack: &Stack, model: &Model) -> &str {
        let id = model.selected();
        // Those of what is gone are read where it was.
        let there = [model.span().upto, model.span().since]
            .into_iter()
            .find(|upto| model.tree().version(id, *upto).is_some_and(|version| version.entry.is_some()));
        let upto = there.unwrap_or_default();
        if self.of != Some((id, upto)) {
            self.of = Some((id, upto));
            self.text = match xattrs(stack, &model.tree().names(id), stack.depth().saturating_sub(upto)) {
                Ok(names) if names.is_empty() => String::new(),
                Ok(names) => format!("xattrs {}", names.join(", ")),
                Err(error) => listing::escaped(error.to_string().as_bytes()),
            };
        }
        &self.text
    }
}

/// Reads the names of the xattrs of a path, in what the layers show from the one at `first` on down.
fn xattrs(stack: &Stack, names: &[&OsStr], first: usize) -> crate::error::Result<Vec<String>> {
    let Some(object) = stack.at_from(first, names)? else { return Ok(Vec::new()) };
    let xattrs = stack.xattrs_of(&object)?;
    Ok(xattrs.iter().map(|(name, _)| listing::escaped(name.as_encoded_bytes())).collect())
}
