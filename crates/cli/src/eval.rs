//! `eval`: how good a run's features and clusters are, by the field's protocols.
//!
//! The workers do the work, as in a run; what they write lies under `eval/` in the run's folder, and goes when it is no longer
//! needed.

mod class_file;
mod clusters;
mod ground_truth;
mod knn;
mod linear;
mod retrieval;
mod saved;
pub mod site;
pub mod subject;
mod voc;
mod voc_sets;

use crate::failure::Failure;
use clusters::ClustersArgs;
use knn::KnnArgs;
use linear::LinearArgs;
use retrieval::RetrievalArgs;
use voc::VocArgs;

/// The protocols.
#[derive(clap::Subcommand)]
pub enum Eval {
    /// Linear probes: logistic regression on the frozen activations of each layer
    #[command(allow_negative_numbers = true)]
    Linear(LinearArgs),
    /// Nearest neighbours: the classes of the most similar training images vote
    #[command(allow_negative_numbers = true)]
    Knn(KnnArgs),
    /// Search for images of the same thing, on a folder in the layout of the Oxford and Paris buildings
    #[command(allow_negative_numbers = true)]
    Retrieval(RetrievalArgs),
    /// Classification of Pascal VOC 2007, by the fully connected layers alone or by all
    #[command(allow_negative_numbers = true)]
    Voc(VocArgs),
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
            Self::Retrieval(args) => args.run().await,
            Self::Voc(args) => args.run().await,
            Self::Clusters(args) => args.run(),
        }
    }
}
