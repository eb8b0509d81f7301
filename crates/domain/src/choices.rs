//! The choices of a run that have names.

use crate::SpecError;
use std::fmt;
use std::str::FromStr;

/// Declares an enum whose values have one spelling on the command line, in files and over the API.
macro_rules! named_choice {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every value, in order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The one spelling of this value.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = SpecError;

            fn from_str(text: &str) -> Result<Self, SpecError> {
                Self::ALL.iter().copied().find(|value| value.as_str() == text).ok_or_else(|| {
                    let known: Vec<_> = Self::ALL.iter().map(|value| value.as_str()).collect();
                    SpecError(format!("unknown {} '{text}': known are {}", $what, known.join(", ")))
                })
            }
        }
    };
}

named_choice!(
    /// The convnets that can be trained.
    Architecture, "architecture" {
        /// 96-256-384-384-256 with batch norm, no local response norm.
        AlexNet = "alexnet",
        /// VGG-16 with batch norm.
        Vgg16 = "vgg16",
        /// torchvision's layout.
        ResNet18 = "resnet18",
        /// torchvision's layout.
        ResNet50 = "resnet50",
    }
);

named_choice!(
    /// Arithmetic of the network's forward and backward pass; weights are always kept in f32.
    Precision, "precision" {
        /// bf16 on a GPU or CPU that has instructions for it, else f32.
        Auto = "auto",
        /// Single precision throughout.
        F32 = "f32",
        /// bf16 inside the layers, f32 for weights, batch-norm statistics and loss.
        Bf16 = "bf16",
    }
);

named_choice!(
    /// How features become pseudo-labels.
    Clustering, "clustering" {
        /// k-means with k clusters.
        KMeans = "kmeans",
        /// Power iteration clustering on the graph of the nearest neighbours, which finds its number of clusters itself.
        Pic = "pic",
    }
);

named_choice!(
    /// How features are stored on the volume.
    FeatureDtype, "feature type" {
        /// Half precision: half the space, and more digits than clustering needs.
        F16 = "f16",
        /// Single precision, for features that leave the range of f16 (±65504).
        F32 = "f32",
    }
);

/// Where the network computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU when there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// One GPU by number; an error where it is missing.
    Cuda(u32),
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let unknown = || SpecError(format!("unknown device '{text}': known are auto, cpu, cuda and cuda:N"));
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                index.parse().map(Self::Cuda).map_err(|_| unknown())
            }
        }
    }
}
