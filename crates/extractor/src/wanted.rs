//! What is wanted of an image: its embedding, a layer's activations, or regional maxima of a layer.

use deepcluster_domain::Tap;
use deepcluster_domain::layers::PROBED_VALUES;
use deepcluster_images::decode::{self, Expected, UNKNOWN, Unreadable};
use deepcluster_images::transform::Transformer;
use deepcluster_network::{Network, NetworkError, layers};
use deepcluster_proto::FieldError;
use deepcluster_proto::v1::ExtractRequest;
use deepcluster_volume::image_list::ImageEntry;
use std::path::Path;

/// The longest side of a whole image, in pixels.
const LONGEST: u32 = 8192;

/// The features that a request asks for.
pub(crate) enum Wanted {
    /// The embedding before its rectifier.
    Embedding,
    /// Activations of a layer, by maxima over windows where it has maps.
    Layer(Tap, u32),
    /// Regional maxima of a layer, of the whole image with a longer side of so many pixels.
    Regions(Tap, u32),
}

impl Wanted {
    pub(crate) fn of(request: &ExtractRequest, network: &Network) -> Result<Self, FieldError> {
        let tap = || network.plan.tap(&request.layer).map_err(|error| FieldError::new("layer", error));
        let values = if request.values == 0 { PROBED_VALUES } else { request.values };
        match (request.layer.as_str(), request.regions_side) {
            ("", 0) => Ok(Self::Embedding),
            ("", _) => Err(FieldError::new("layer", "is missing: regions are of a layer's maps")),
            (_, 0) => Ok(Self::Layer(tap()?, values)),
            (_, side) if !(network.plan.image_size..=LONGEST).contains(&side) => {
                let least = network.plan.image_size;
                Err(FieldError::new("regions_side", format!("must lie between {least} and {LONGEST}")))
            }
            (_, side) => {
                let tap = tap()?;
                match tap.name.starts_with("conv") || tap.name.starts_with("layer") {
                    true => Ok(Self::Regions(tap, side)),
                    false => Err(FieldError::new("layer", format!("{} has no maps, and so no regions", tap.name))),
                }
            }
        }
    }

    /// Values of an image.
    pub(crate) fn width(&self, network: &Network) -> Result<usize, NetworkError> {
        let shape = |tap: &Tap| network.layer_shape(tap);
        Ok(match self {
            Self::Embedding => network.plan.embedding as usize,
            Self::Layer(tap, values) => layers::pooled_width(&shape(tap)?, *values) as usize,
            Self::Regions(tap, _) => shape(tap)?.get(1).copied().unwrap_or(0) as usize,
        })
    }

    /// Features of square views `[n, size, size, 3]`, one behind the other.
    pub(crate) fn of_views(&self, network: &Network, pixels: &[u8]) -> Result<Vec<f32>, NetworkError> {
        match self {
            Self::Embedding => network.features(pixels),
            Self::Layer(tap, values) | Self::Regions(tap, values) => network.layer_features(pixels, tap, *values),
        }
    }
}

/// Regional maxima of one whole image, and the digest of its file.
pub(crate) fn of_whole_image(
    network: &Network,
    tap: &Tap,
    side: u32,
    folder: &Path,
    entry: &ImageEntry,
) -> Result<Result<(Vec<f32>, i64), Unreadable>, NetworkError> {
    let image = || {
        let mut content = Vec::new();
        let expected = Expected { bytes: entry.bytes, digest: UNKNOWN };
        let digest = decode::read(&folder.join(entry.as_path()), Some(expected), &mut content)?;
        let image = Transformer::default().fitted(&decode::decode(&content)?.image, side, network.plan.image_size)?;
        Ok((image, digest))
    };
    match image() {
        Ok((image, digest)) => {
            let size = (image.width(), image.height());
            Ok(Ok((network.regional_maxima(image.as_raw(), size, tap)?, digest)))
        }
        Err(why) => Ok(Err(why)),
    }
}
