//! `eval`: how good a run's features and clusters are, by the field's protocols.
//!
//! The workers do the work, as in a run; what they write lies under `eval/` in the run's folder, and goes when it is no longer
//! needed.

mod clusters;
mod knn;
mod linear;
mod site;
mod subject;

use crate::failure::Failure;
use clusters::ClustersArgs;
use knn::KnnArgs;
use linear::LinearArgs;

/// The protocols.
#[derive(clap::Subcommand)]
pub enum Eval {
    /// Linear probes: logistic regression on the frozen activations of each layer
    #[command(allow_negative_numbers = true)]
    Linear(LinearArgs),
    /// Nearest neighbours: the classes of the most similar training images vote
    #[command(allow_negative_numbers = true)]
    Knn(KnnArgs),
    /// The clusters of an epoch against true classes
    Clusters(ClustersArgs),
}

impl Eval {
    /// Evaluates and prints what came out.
    ///
    /// # Errors
    /// When the run or the images do not do, or a worker fails.
    pub async fn run(self) -> Result<(), Failure> {
        match self {
            Self::Linear(args) => args.run().await,
            Self::Knn(args) => args.run().await,
            Self::Clusters(args) => args.run(),
        }
    }
}
