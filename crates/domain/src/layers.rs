//! The layers whose activations can be looked at, by the names that the field has for them.
//!
//! `conv1` … `conv5` of AlexNet (`conv13` of VGG-16), `layer1` … `layer4` of a ResNet, `pool` before the fully connected
//! layers, `fc6` and `fc7`. Activations are taken behind the rectifier, as linear probes have them (paper, section 4.2).

use crate::plan::{Layer, Plan};
use crate::{Architecture, SpecError};

/// About how many values of a layer a linear probe sees (paper, section 4.2): 9,600 or 9,216 of AlexNet's.
pub const PROBED_VALUES: u32 = 9216;

/// A place in a network where activations are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// The field's name for it.
    pub name: String,
    /// It lies behind so many of the plan's layers.
    pub behind: usize,
    /// Whether a rectifier follows that is not among the plan's layers.
    pub rectify: bool,
}

impl Plan {
    /// Every place where activations can be taken, from the first layer to the last. Norms may have been folded away.
    pub fn taps(&self) -> Vec<Tap> {
        let mut taps: Vec<Tap> = Vec::new();
        let mut tap = |name: String, behind: usize, rectify: bool| {
            // Of a stage of residual blocks, the last one counts.
            taps.retain(|tap| tap.name != name);
            taps.push(Tap { name, behind, rectify });
        };
        let (mut convs, mut linears) = (0, 0);
        let mut last = "";
        for (index, layer) in self.layers.iter().enumerate() {
            let behind = index + 1;
            match layer {
                Layer::Conv { .. } => {
                    convs += 1;
                    last = "conv";
                }
                Layer::Linear { .. } => {
                    linears += 1;
                    last = "fc";
                    if behind == self.layers.len() {
                        tap(format!("fc{}", 5 + linears), behind, self.relu_before_top);
                    }
                }
                Layer::Relu if last == "conv" => tap(format!("conv{convs}"), behind, false),
                Layer::Relu if last == "fc" => tap(format!("fc{}", 5 + linears), behind, false),
                Layer::Residual { body, .. } => tap(stage(body), behind, false),
                Layer::AveragePool | Layer::Flatten => tap("pool".to_owned(), behind, false),
                _ => {}
            }
        }
        taps
    }

    /// The place of one name.
    ///
    /// # Errors
    /// One sentence that lists the names that there are.
    pub fn tap(&self, name: &str) -> Result<Tap, SpecError> {
        let taps = self.taps();
        let known = || taps.iter().map(|tap| tap.name.as_str()).collect::<Vec<_>>().join(", ");
        let unknown = || SpecError(format!("unknown layer '{name}': this network has {}", known()));
        taps.iter().find(|tap| tap.name == name).cloned().ok_or_else(unknown)
    }
}

/// "layer3" of the convolution "layer3.1.conv1".
fn stage(body: &[Layer]) -> String {
    let name = body.iter().find_map(|layer| match layer {
        Layer::Conv { name, .. } => name.split('.').next(),
        _ => None,
    });
    name.unwrap_or("layer").to_owned()
}

/// Names of the layers that a table of linear probes has: the convolutions, or the stages of a ResNet and its pool.
pub fn probed_layers(architecture: Architecture) -> Vec<String> {
    let numbered = |stem: &str, n: usize| (1..=n).map(|number| format!("{stem}{number}")).collect::<Vec<_>>();
    match architecture {
        Architecture::AlexNet => numbered("conv", 5),
        Architecture::Vgg16 => numbered("conv", 13),
        Architecture::ResNet18 | Architecture::ResNet50 => {
            let mut layers = numbered("layer", 4);
            layers.push("pool".to_owned());
            layers
        }
    }
}

/// Side of the map to which `channels` maps of `side` × `side` are pooled, so that about `values` numbers stay: the one that
/// comes nearest, and never more than there are.
pub fn pooled_side(channels: i64, side: i64, values: u32) -> i64 {
    let off = |side: i64| (channels * side * side - i64::from(values)).abs();
    (1..=side.max(1)).min_by_key(|side| off(*side)).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(architecture: Architecture) -> Vec<String> {
        Plan::new(architecture, 224, true).taps().into_iter().map(|tap| tap.name).collect()
    }

    #[test]
    fn layers_have_the_names_of_the_field() {
        assert_eq!(names(Architecture::AlexNet), ["conv1", "conv2", "conv3", "conv4", "conv5", "pool", "fc6", "fc7"]);
        assert_eq!(names(Architecture::Vgg16)[12..], ["conv13", "pool", "fc6", "fc7"]);
        for architecture in [Architecture::ResNet18, Architecture::ResNet50] {
            assert_eq!(names(architecture), ["conv1", "layer1", "layer2", "layer3", "layer4", "pool"]);
        }
        for architecture in Architecture::ALL {
            let plan = Plan::new(*architecture, 224, false);
            assert!(probed_layers(*architecture).iter().all(|name| plan.tap(name).is_ok()), "{architecture}");
        }
        let plan = Plan::new(Architecture::AlexNet, 224, true);
        assert!(plan.tap("fc7").unwrap().rectify && !plan.tap("fc6").unwrap().rectify);
        assert!(plan.tap("layer1").unwrap_err().to_string().contains("this network has conv1, conv2"));
    }

    /// RegLog of the authors' eval_linear.py has 9600, 9216, 9600, 9600 and 9216 values.
    #[test]
    fn as_many_values_stay_as_in_the_paper() {
        let maps = [(96, 55), (256, 27), (384, 13), (384, 13), (256, 13)];
        let values = maps.map(|(channels, side)| channels * pooled_side(channels, side, PROBED_VALUES).pow(2));
        assert_eq!(values, [9600, 9216, 9600, 9600, 9216]);
        assert_eq!(pooled_side(256, 2, PROBED_VALUES), 2);
        assert_eq!(pooled_side(2048, 7, 1), 1);
    }
}
