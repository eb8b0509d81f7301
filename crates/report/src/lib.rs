//! What a run looks like to people: the verdict on it, its curves, the atlas of its clusters, and the one page that holds all
//! of this without loading anything from anywhere.
//!
//! Only files are read, and only those of a committed epoch that are what its manifest says. Nothing is written: the page is
//! a text, which the command line publishes.
#![forbid(unsafe_code)]

pub mod atlas;
mod atlas_image;
pub mod cards;
pub mod curves;
mod error;
mod filters;
mod html;
mod last;
mod lineage;
mod map;
mod nearest;
pub mod page;
mod project;
mod script;
pub mod style;
pub mod tensorboard;
#[cfg(test)]
mod testing;
mod thumbs;
pub mod verdict;
pub mod view;
mod visualized;

pub use atlas::{Ancestor, AtlasOptions, Card, Picture, atlas};
pub use atlas_image::atlas_png;
pub use cards::cards_html;
pub use curves::{Curve, curves};
pub use error::ReportError;
pub use html::escape;
pub use page::{Page, report};
pub use script::SCRIPT;
pub use style::STYLE;
pub use verdict::{Verdict, verdict};
pub use view::{Notice, RunView};
