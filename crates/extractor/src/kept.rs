//! The networks, whitenings and centroids that were asked for last. They belong to one thread.

use crate::Place;
use crate::embed::Batch;
use crate::extract::network_status;
use deepcluster_domain::{FeatureDtype, RunSpec};
use deepcluster_network::assigning::rounded;
use deepcluster_network::{Assigning, Network, Runtime};
use deepcluster_proto::FieldError;
use deepcluster_proto::v1::image_answer::Outcome;
use deepcluster_proto::v1::{self, Assigned, EmbedResponse, Embedding, ImageAnswer};
use deepcluster_service::requests;
use metrics::counter;
use tonic::Status;
use tracing::info;

/// How many networks stay, and how many whitenings: a run's last epoch and the one before, or two runs.
const KEPT: usize = 2;

/// By what images are embedded.
pub(crate) struct Asked {
    /// As far as it concerns the network.
    pub(crate) spec: RunSpec,
    pub(crate) network: v1::Network,
    pub(crate) feature_dtype: FeatureDtype,
    pub(crate) whiten: Option<v1::File>,
    pub(crate) centroids: Option<v1::File>,
}

/// A network as a request names it, and the seed of first weights.
type NetworkKey = (v1::Network, u64);

/// Files as a request names them, with their checksums.
type AssigningKey = (v1::File, Option<v1::File>);

/// What is loaded.
#[derive(Default)]
pub(crate) struct Models {
    networks: Kept<NetworkKey, Network>,
    assignings: Kept<AssigningKey, Assigning>,
}

impl Models {
    /// Embeds a batch, and finds clusters where these are wanted.
    ///
    /// # Errors
    /// As [`crate::embed::Embedder::embed`].
    pub(crate) fn answer(&mut self, place: &Place, batch: Batch) -> Result<EmbedResponse, Status> {
        let Batch { asked, mut pixels, images } = batch;
        let key = (asked.network.clone(), asked.spec.seed);
        let network = self.networks.get(&key, || load_network(place, &asked))?;
        let width = network.plan.embedding as usize;
        let assigning = match &asked.whiten {
            None => None,
            Some(whiten) => {
                let key = (whiten.clone(), asked.centroids.clone());
                let assigning = self.assignings.get(&key, || load_assigning(place, &key))?;
                if assigning.width() != width {
                    let why = format!("is for features of {} values, the network makes {width}", assigning.width());
                    return Err(FieldError::new("whiten", why).into());
                }
                Some(assigning)
            }
        };
        // cuDNN looks for the fastest way anew whenever the number of images is one that it has not seen.
        if network.runtime.device.is_cuda() {
            let image_bytes = pixels.len() / images.len().max(1);
            pixels.resize(images.len().next_power_of_two() * image_bytes, 0);
        }
        let mut features = network.features(&pixels).map_err(network_status)?;
        features.truncate(images.len() * width);
        let features = rounded(features, asked.feature_dtype).map_err(network_status)?;
        let is_finite: Vec<bool> = features.chunks_exact(width).map(|row| row.iter().all(|value| value.is_finite())).collect();
        let outcomes = outcomes_of(assigning, features, width, asked.centroids.is_some())?;
        let answers = images.into_iter().zip(outcomes).zip(is_finite).map(|(((id, unreadable), outcome), is_finite)| {
            let outcome = match unreadable {
                Some(why) => Outcome::Skipped(why),
                None if !is_finite => Outcome::Skipped("its features are not finite".to_owned()),
                None => outcome,
            };
            ImageAnswer { id, outcome: Some(outcome) }
        });
        let images: Vec<ImageAnswer> = answers.collect();
        counter!("deepcluster_images_total").increment(images.len() as u64);
        Ok(EmbedResponse { images })
    }
}

/// An outcome for each row of features, whatever is in it.
fn outcomes_of(
    assigning: Option<&Assigning>,
    features: Vec<f32>,
    width: usize,
    wants_clusters: bool,
) -> Result<Vec<Outcome>, Status> {
    let embeddings = |values: &[f32], width: usize| -> Vec<Outcome> {
        let embedding = |row: &[f32]| Outcome::Embedding(Embedding { values: row.to_vec() });
        values.chunks_exact(width).map(embedding).collect()
    };
    Ok(match assigning {
        None => embeddings(&features, width),
        Some(assigning) if wants_clusters => {
            let nearest = assigning.nearest(&features).map_err(network_status)?;
            nearest.into_iter().map(|(cluster, distance)| Outcome::Assigned(Assigned { cluster, distance })).collect()
        }
        Some(assigning) => embeddings(&assigning.whitened(&features).map_err(network_status)?, assigning.dims()),
    })
}

fn load_network(place: &Place, asked: &Asked) -> Result<Network, Status> {
    let checkpoint = asked.network.checkpoint.as_ref();
    let checkpoint = checkpoint.map(|file| requests::verified(&place.volume, "network.checkpoint", Some(file))).transpose()?;
    let spec = &asked.spec;
    let runtime = Runtime::prepare(spec.device, spec.precision, place.threads).map_err(network_status)?;
    let network = Network::load(spec, runtime, checkpoint.as_deref()).and_then(|network| network.folded());
    let network = network.map_err(network_status)?;
    info!(checkpoint = ?asked.network.checkpoint.as_ref().map(|file| file.path.as_str()), "a network is loaded for images");
    Ok(network)
}

fn load_assigning(place: &Place, (whiten, centroids): &AssigningKey) -> Result<Assigning, Status> {
    let whiten = requests::verified(&place.volume, "whiten", Some(whiten))?;
    let centroids = centroids.as_ref().map(|file| requests::verified(&place.volume, "centroids", Some(file))).transpose()?;
    Assigning::read(&whiten, centroids.as_deref()).map_err(network_status)
}

/// The few things that were asked for last, by what they were asked for.
struct Kept<K, V> {
    /// The one that was asked for last stands last.
    items: Vec<(K, V)>,
}

impl<K, V> Default for Kept<K, V> {
    fn default() -> Self {
        Self { items: Vec::new() }
    }
}

impl<K: Clone + PartialEq, V> Kept<K, V> {
    /// What a key stands for, which is made where it is not there. What makes room for it goes before.
    fn get(&mut self, key: &K, make: impl FnOnce() -> Result<V, Status>) -> Result<&V, Status> {
        match self.items.iter().position(|(other, _)| other == key) {
            Some(at) => {
                let item = self.items.remove(at);
                self.items.push(item);
            }
            None => {
                while self.items.len() >= KEPT {
                    self.items.remove(0);
                }
                self.items.push((key.clone(), make()?));
            }
        }
        self.items.last().map(|(_, value)| value).ok_or_else(|| Status::internal("nothing is kept"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_last_stays() {
        let mut kept: Kept<u8, String> = Kept::default();
        let mut made = Vec::new();
        for key in [1, 2, 1, 3, 1, 2, 1] {
            let make = || {
                made.push(key);
                Ok(format!("of {key}"))
            };
            assert_eq!(*kept.get(&key, make).unwrap(), format!("of {key}"));
        }
        assert_eq!(made, [1, 2, 3, 2]);
        assert!(kept.get(&9, || Err(Status::internal("no"))).is_err() && kept.items.len() < KEPT);
    }
}
