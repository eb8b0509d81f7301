//! Wire ↔ domain. Nothing that a client sends panics: every conversion has an error that names the field.

use crate::v1;
use deepcluster_domain::geometry::resize_side;
use deepcluster_domain::{Architecture, Auto, AutoOptions, Clustering, DeviceChoice, FeatureDtype, Precision, RunSpec, Tags};
use std::collections::HashMap;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// A field of a request that does not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct FieldError {
    /// The field's name in the proto file.
    pub field: &'static str,
    /// One clause that says what is wrong.
    pub why: String,
    /// The same by the parts of the field, where it has parts.
    parts: Vec<(String, String)>,
}

impl FieldError {
    /// An error about `field`.
    pub fn new(field: &'static str, why: impl std::fmt::Display) -> Self {
        Self { field, why: why.to_string(), parts: Vec::new() }
    }

    /// An error about parts of `field`, each by its name and with its sentence.
    pub fn of_parts(field: &'static str, parts: Vec<(&'static str, String)>) -> Self {
        let why = parts.iter().map(|(_, sentence)| sentence.as_str()).collect::<Vec<_>>().join("; ");
        let parts = parts.into_iter().map(|(part, sentence)| (format!("{field}.{part}"), sentence)).collect();
        Self { field, why, parts }
    }
}

impl From<FieldError> for Status {
    /// INVALID_ARGUMENT, with the fields as `google.rpc.BadRequest` beside the sentence.
    fn from(error: FieldError) -> Self {
        let sentence = error.to_string();
        let mut details = ErrorDetails::new();
        for (field, why) in error.parts {
            details.add_bad_request_violation(field, why);
        }
        if !details.has_bad_request_violations() {
            details.add_bad_request_violation(error.field, error.why);
        }
        Status::with_error_details(Code::InvalidArgument, sentence, details)
    }
}

/// A refusal of what may be accepted later, with `google.rpc.RetryInfo`.
pub fn retry_later(code: Code, sentence: impl Into<String>, after: Duration) -> Status {
    Status::with_error_details(code, sentence, ErrorDetails::with_retry_info(Some(after)))
}

/// What a user says about a run, checked.
///
/// # Errors
/// INVALID_ARGUMENT for the first field that does not do.
pub fn tags_of(priority: i32, labels: HashMap<String, String>, note: String) -> Result<Tags, FieldError> {
    let tags = Tags { priority, labels: labels.into_iter().collect(), note };
    tags.validate().map_err(|(field, error)| FieldError::new(field, error))?;
    Ok(tags)
}

/// Ties a wire enum to a domain enum, both ways; the unspecified value has its own answer.
macro_rules! enums {
    ($($field:literal: $wire:ident <-> $domain:ident [$($variant:ident = $other:ident),+] else $default:expr;)+) => { $(
        impl From<$domain> for v1::$wire {
            fn from(value: $domain) -> Self {
                match value { $($domain::$variant => Self::$other),+ }
            }
        }

        impl v1::$wire {
            /// The domain's value for a number on the wire.
            ///
            /// # Errors
            /// When the number means nothing.
            pub fn to_domain(number: i32) -> Result<$domain, FieldError> {
                match Self::try_from(number) {
                    Ok(Self::Unspecified) => Ok($default),
                    $(Ok(Self::$other) => Ok($domain::$variant),)+
                    Err(_) => Err(FieldError::new($field, format!("unknown value {number}"))),
                }
            }
        }
    )+ };
}

enums! {
    "architecture": Architecture <-> Architecture
        [AlexNet = Alexnet, Vgg16 = Vgg16, ResNet18 = Resnet18, ResNet50 = Resnet50] else Architecture::AlexNet;
    "precision": Precision <-> Precision [Auto = Auto, F32 = F32, Bf16 = Bf16] else Precision::Auto;
    "clustering": Clustering <-> Clustering [KMeans = Kmeans, Pic = Pic] else Clustering::KMeans;
    "feature_dtype": FeatureDtype <-> FeatureDtype [F16 = F16, F32 = F32] else FeatureDtype::F16;
}

/// A spec with every default filled in, for the wire.
pub fn run_spec_to_wire(spec: &RunSpec) -> v1::RunSpec {
    v1::RunSpec {
        images: spec.images.clone(),
        k: match spec.k {
            Auto::Auto => 0,
            Auto::Fixed(k) => k,
        },
        epochs: spec.epochs,
        architecture: v1::Architecture::from(spec.architecture).into(),
        image_size: spec.image_size,
        no_sobel: !spec.sobel,
        batch: if spec.auto.batch { 0 } else { spec.batch },
        learning_rate: if spec.auto.learning_rate { 0.0 } else { spec.learning_rate },
        weight_decay: Some(spec.weight_decay),
        pca: if spec.auto.pca { 0 } else { spec.pca },
        reassign: spec.reassign,
        seed: Some(spec.seed),
        device: spec.device.to_string(),
        precision: v1::Precision::from(spec.precision).into(),
        feature_dtype: v1::FeatureDtype::from(spec.feature_dtype).into(),
        max_skipped: Some(spec.max_skipped),
        keep_epochs: spec.keep_epochs,
        shard_images: spec.shard_images,
        checkpoint_every: spec.checkpoint_every.to_string(),
        cache_side: spec.cache_side,
        clustering: v1::Clustering::from(spec.clustering).into(),
        match_labels: spec.match_labels,
        init: spec.init.clone().unwrap_or_default(),
        no_keep_best: !spec.keep_best,
        skip_truncated: spec.skip_truncated,
        include_hidden: spec.include_hidden,
        classes_from: spec.classes_from,
    }
}

impl TryFrom<v1::RunSpec> for RunSpec {
    type Error = FieldError;

    /// Fills in the defaults and checks every field.
    fn try_from(wire: v1::RunSpec) -> Result<Self, FieldError> {
        let default = Self::default();
        let number_or = |value: f64, default: f64| if value == 0.0 { default } else { value };
        let count_or = |value: u32, default: u32| if value == 0 { default } else { value };
        let image_size = count_or(wire.image_size, default.image_size);
        let spec = Self {
            images: wire.images,
            k: if wire.k == 0 { Auto::Auto } else { Auto::Fixed(wire.k) },
            epochs: count_or(wire.epochs, default.epochs),
            architecture: v1::Architecture::to_domain(wire.architecture)?,
            image_size,
            cache_side: count_or(wire.cache_side, resize_side(image_size)),
            sobel: !wire.no_sobel,
            batch: count_or(wire.batch, default.batch),
            learning_rate: number_or(wire.learning_rate, default.learning_rate),
            weight_decay: wire.weight_decay.unwrap_or(default.weight_decay),
            pca: count_or(wire.pca, default.pca),
            reassign: number_or(wire.reassign, default.reassign),
            seed: wire.seed.unwrap_or(default.seed),
            device: device_choice(&wire.device)?,
            precision: v1::Precision::to_domain(wire.precision)?,
            feature_dtype: v1::FeatureDtype::to_domain(wire.feature_dtype)?,
            max_skipped: wire.max_skipped.unwrap_or(default.max_skipped),
            keep_epochs: count_or(wire.keep_epochs, default.keep_epochs),
            keep_best: !wire.no_keep_best,
            skip_truncated: wire.skip_truncated,
            include_hidden: wire.include_hidden,
            classes_from: wire.classes_from,
            shard_images: count_or(wire.shard_images, default.shard_images),
            checkpoint_every: match wire.checkpoint_every.as_str() {
                "" => default.checkpoint_every,
                text => text.parse().map_err(|error| FieldError::new("checkpoint_every", error))?,
            },
            clustering: v1::Clustering::to_domain(wire.clustering)?,
            match_labels: wire.match_labels,
            init: Some(wire.init).filter(|path| !path.is_empty()),
            auto: AutoOptions { batch: wire.batch == 0, learning_rate: wire.learning_rate == 0.0, pca: wire.pca == 0 },
        };
        match spec.violations() {
            none if none.is_empty() => Ok(spec),
            some => Err(FieldError::of_parts("spec", some)),
        }
    }
}

/// A field `device`; empty means auto.
///
/// # Errors
/// When there is no such device.
pub fn device_choice(text: &str) -> Result<DeviceChoice, FieldError> {
    match text {
        "" => Ok(DeviceChoice::Auto),
        text => text.parse().map_err(|error| FieldError::new("device", error)),
    }
}

/// What a worker must know of the network of a run; `checkpoint` is absent before the first epoch is committed.
pub fn network_of(spec: &RunSpec, checkpoint: Option<v1::File>) -> v1::Network {
    v1::Network {
        architecture: v1::Architecture::from(spec.architecture).into(),
        image_size: spec.image_size,
        sobel: spec.sobel,
        device: spec.device.to_string(),
        precision: v1::Precision::from(spec.precision).into(),
        checkpoint,
        cache_side: spec.cache_side,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_spec_means_the_defaults_and_a_full_one_survives() {
        let empty = RunSpec::try_from(v1::RunSpec::default()).unwrap();
        assert_eq!(empty, RunSpec { images: String::new(), ..RunSpec::default() });
        let spec = RunSpec {
            images: "a/b".to_owned(),
            k: Auto::Fixed(12),
            architecture: Architecture::ResNet50,
            sobel: false,
            seed: 0,
            weight_decay: 0.0,
            max_skipped: 0.0,
            skip_truncated: true,
            include_hidden: true,
            keep_best: false,
            precision: Precision::Bf16,
            feature_dtype: FeatureDtype::F32,
            device: "cuda:3".parse().unwrap(),
            checkpoint_every: "7".parse().unwrap(),
            cache_side: 300,
            match_labels: true,
            init: Some("weights.safetensors".to_owned()),
            ..RunSpec::default()
        };
        let pic = RunSpec { clustering: Clustering::Pic, k: Auto::Auto, ..spec.clone() };
        for spec in [spec, pic] {
            assert_eq!(RunSpec::try_from(run_spec_to_wire(&spec)), Ok(spec));
        }
    }

    #[test]
    fn wrong_fields_are_named() {
        let refused = |wire: v1::RunSpec| RunSpec::try_from(wire).unwrap_err().to_string();
        assert!(refused(v1::RunSpec { architecture: 99, ..Default::default() }).contains("architecture: unknown value 99"));
        assert!(refused(v1::RunSpec { device: "tpu".into(), ..Default::default() }).contains("device"));
        assert!(refused(v1::RunSpec { learning_rate: f64::NAN, ..Default::default() }).contains("learning rate"));
        assert!(refused(v1::RunSpec { image_size: 10, ..Default::default() }).contains("image size 10"));
        let wire = v1::RunSpec { image_size: 10, batch: 1, ..Default::default() };
        let status = Status::from(RunSpec::try_from(wire).unwrap_err());
        let details = status.get_details_bad_request().unwrap();
        let fields: Vec<_> = details.field_violations.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(fields, ["spec.image_size", "spec.batch"]);
    }
}
