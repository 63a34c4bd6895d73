//! What is looked at: an image or a container, its layers open.

use super::progress::Bars;
use crate::cli::exit::Failure;
use crate::error::{Error, ErrorKind};
use crate::image::history;
use crate::image::manifest::Image;
use crate::image::stack::Stack;
use crate::image::store::{Container, Store, Tree};

/// An image or a container.
#[derive(Debug)]
pub enum Subject {
    Image(Box<Image>),
    Container(Box<Container>),
}

impl Subject {
    /// Finds what `text` names: an image, else a container.
    pub fn find(store: &Store, text: &str) -> Result<Self, Error> {
        match store.find(text) {
            Ok(found) => Ok(Self::Image(Box::new(found.image))),
            Err(absent) if absent.kind() == ErrorKind::Absent => {
                store.container(text).map(|container| Self::Container(Box::new(container))).map_err(|_| absent)
            }
            Err(error) => Err(error),
        }
    }

    /// Opens the tree of what is called `text`.
    pub fn stack(&self, store: &Store, text: &str) -> Result<Stack, Failure> {
        match self {
            Self::Image(image) => stack_of(store, image, text),
            Self::Container(container) => Ok(store.stacks_of(container)?.0),
        }
    }
}

/// Opens the tree of the image that is called `text`; its layers are unpacked where they are not yet.
pub fn stack_of(store: &Store, image: &Image, text: &str) -> Result<Stack, Failure> {
    let trees = store.trees(image, &Bars::new("unpacking")).map_err(|error| error.within(text))?;
    Ok(Stack::open(trees.iter().rev().map(Tree::part), store.keep())?)
}

/// Returns the commands that have made the layers of an image, lowest first; one that the history does not tell is empty.
pub fn commands(image: &Image) -> Vec<String> {
    let mut commands = vec![String::new(); image.layers.len()];
    for entry in history::entries(image) {
        if let Some(command) = entry.layer.and_then(|at| commands.get_mut(at)) {
            *command = entry.created_by.unwrap_or_default();
        }
    }
    commands
}
