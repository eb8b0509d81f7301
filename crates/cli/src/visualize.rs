//! `visualize`: pictures of what a network has learned.

mod filters;
mod sheet;
mod top;

use crate::failure::Failure;
use filters::FiltersArgs;

/// What can be looked at.
#[derive(clap::Subcommand)]
pub enum Visualize {
    /// Filters of a layer: the images of the run that excite each most, and a picture made to excite it
    #[command(allow_negative_numbers = true)]
    Filters(FiltersArgs),
}

impl Visualize {
    /// Makes the pictures.
    ///
    /// # Errors
    /// When the run or its images do not do, or a worker fails.
    pub async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Filters(args) => args.run().await,
        }
    }
}
