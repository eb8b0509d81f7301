//! The network against PyTorch's answers in `tests/parity` (made by the formula of `fill` there; no weights are stored).
//!
//! The built program can be brought to another machine: PARITY_DIR is where the answers lie, PARITY_DEVICE where it computes,
//! PARITY_PRECISION f32 or bf16.
#![allow(clippy::unwrap_used, reason = "a test")]

use deepcluster_domain::{Architecture, DeviceChoice, EpochId, Plan, Precision, Seeds};
use deepcluster_network::forward::Mode;
use deepcluster_network::weights::Tensors;
use deepcluster_network::{Network, Runtime, SgdOptions, TrainingPass};
use deepcluster_volume::npy;
use std::path::PathBuf;
use tch::{Device, Kind, Tensor};

fn parity() -> PathBuf {
    let here = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity");
    std::env::var_os("PARITY_DIR").map_or_else(here, PathBuf::from)
}

/// Where everything is computed, and how.
fn runtime() -> Runtime {
    let variable = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let device: DeviceChoice = variable("PARITY_DEVICE", "cpu").parse().unwrap();
    let precision: Precision = variable("PARITY_PRECISION", "f32").parse().unwrap();
    Runtime::prepare(device, precision, 2).unwrap()
}

/// An error that is allowed in f32, and in bf16, whose numbers have 8 bits: 2^-8 a number, and what many layers make of it.
fn allowed(in_f32: f64, in_bf16: f64) -> f64 {
    if runtime().kind == Kind::BFloat16 { in_bf16 } else { in_f32 }
}

fn cases() -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(parity().join("cases.json")).unwrap()).unwrap()
}

/// splitmix64 of (fnv1a64(name) + (j + 1) · 0x9E3779B97F4A7C15), top 24 bits / 2^23 - 1.
fn unit(name: &str, n: usize) -> Vec<f32> {
    let start = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01B3));
    (1..=n as u64)
        .map(|j| {
            let mut z = start.wrapping_add(j.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            (z >> 40) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

fn fill(name: &str, shape: &[i64]) -> Tensor {
    let u = unit(name, shape.iter().product::<i64>() as usize);
    let fan_in: i64 = shape[1..].iter().product();
    let leaf = name.rsplit('.').next().unwrap();
    let value = |u: f32| match leaf {
        _ if shape.len() >= 2 => u * (6.0 / fan_in as f64).sqrt() as f32,
        "running_var" | "weight" => 1.0 + 0.1 * u,
        _ => 0.1 * u,
    };
    Tensor::from_slice(&u.into_iter().map(value).collect::<Vec<f32>>()).view(shape)
}

fn network(architecture: Architecture, sobel: bool, size: u32) -> Network {
    let runtime = runtime();
    let plan = Plan::new(architecture, size, sobel);
    let tensor = |name: &str, shape: &[i64]| fill(name, shape).to_device(runtime.device);
    let tensors: Tensors = plan.weights().into_iter().map(|spec| (spec.name.clone(), tensor(&spec.name, &spec.shape))).collect();
    Network::new(plan, runtime, tensors).unwrap()
}

fn input(n: i64, size: i64) -> Tensor {
    let values = unit(&format!("input{size}"), (n * 3 * size * size) as usize);
    (Tensor::from_slice(&values).view([n, 3, size, size]) * 2.0).to_device(runtime().device)
}

/// The largest difference, in units of the largest expected value.
fn relative_error(actual: &Tensor, file: &str) -> f64 {
    let (shape, expected) = npy::read_f32(&parity().join(file)).unwrap();
    let shape: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
    let expected = Tensor::from_slice(&expected).view(shape.as_slice());
    assert_eq!(actual.size(), shape);
    let actual = actual.to_device(Device::Cpu).to_kind(Kind::Float);
    let largest = expected.abs().max().double_value(&[]);
    (actual - expected).abs().max().double_value(&[]) / largest
}

fn check_embedding(architecture: Architecture, sobel: bool, size: u32) {
    let front = if sobel { "sobel" } else { "rgb" };
    let file = format!("embed-{architecture}-{front}-{size}.npy");
    let _no_grad = tch::no_grad_guard();
    let network = network(architecture, sobel, size);
    let folded = network.folded().unwrap();
    let is_norm = |name: &String| name.contains("running_mean");
    assert!(folded.plan.weights().len() < network.plan.weights().len());
    assert!(!folded.plan.weights().iter().any(|spec| is_norm(&spec.name)), "every norm follows a convolution");
    for (how, network) in [("whole", network), ("folded", folded)] {
        let embedding = network.embed(&input(2, i64::from(size)), Mode::Eval).unwrap();
        let error = relative_error(&embedding, &file);
        println!("{file}, {how}: {error:.2e}");
        assert!(error <= allowed(1e-4, 5e-2), "{file}, {how}: {error:.2e} of the largest value");
    }
}

#[test]
fn embeddings_of_alexnet() {
    check_embedding(Architecture::AlexNet, true, 224);
    check_embedding(Architecture::AlexNet, false, 224);
    check_embedding(Architecture::AlexNet, true, 64);
}

#[test]
fn embeddings_of_vgg16() {
    check_embedding(Architecture::Vgg16, true, 224);
}

#[test]
fn embeddings_of_resnets() {
    check_embedding(Architecture::ResNet18, false, 64);
    check_embedding(Architecture::ResNet50, false, 64);
}

#[test]
fn the_sobel_filter() {
    let filtered = network(Architecture::AlexNet, true, 64).seen_of_normalised(&input(2, 64)).unwrap();
    let case = &cases()["sobel"];
    let sum = filtered.abs().sum(Kind::Double).double_value(&[]);
    assert!((sum / case["sum"].as_f64().unwrap() - 1.0).abs() < allowed(1e-5, 1e-2), "{sum}");
    for channel in 0..2 {
        let corner = filtered.double_value(&[0, channel, 0, 0]);
        assert!((corner - case["corner"][channel as usize].as_f64().unwrap()).abs() < allowed(1e-5, 5e-2), "{corner}");
    }
}

#[test]
fn three_training_steps() {
    let case = &cases()["train3"];
    let device = runtime().device;
    let top = [("top_layer.weight", &[10, 4096][..]), ("top_layer.bias", &[10])];
    let top = top.map(|(name, shape)| (fill(name, shape) * 0.1).to_device(device));
    let sgd = SgdOptions { learning_rate: 0.002, momentum: 0.9, weight_decay: 1e-5 };
    let network = network(Architecture::AlexNet, true, 64);
    let mut pass = TrainingPass::with_top_layer(network, top, sgd, Seeds::new(1, EpochId(0)), None).unwrap().without_dropout();
    let images = input(8, 64);
    let labels: Vec<i64> = (0..8).collect();
    for step in 0..3 {
        let loss = pass.step_on(&images, &labels, step).unwrap();
        let expected = case["losses"][step as usize].as_f64().unwrap();
        println!("loss {step}: {loss} (PyTorch {expected})");
        assert!((loss / expected - 1.0).abs() <= allowed(1e-3, 3e-2), "loss {loss}, not {expected}");
    }
    let _no_grad = tch::no_grad_guard();
    let embedding = pass.network().embed(&images.narrow(0, 0, 2), Mode::Eval).unwrap();
    let error = relative_error(&embedding, "train3-embed.npy");
    println!("embedding after three steps: {error:.2e}");
    assert!(error <= allowed(1e-2, 1e-1), "{error:.2e} of the largest value");
    for (leaf, key) in [("running_mean", "running_mean_sum"), ("running_var", "running_var_sum")] {
        let sum = pass.network().tensors[&format!("features.1.{leaf}")].sum(Kind::Double).double_value(&[]);
        assert!((sum / case[key].as_f64().unwrap() - 1.0).abs() < allowed(1e-3, 3e-2), "{leaf} sums to {sum}");
    }
}

#[test]
fn a_checkpoint_restores_the_network_and_its_momentum() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    let sgd = SgdOptions { learning_rate: 0.01, momentum: 0.9, weight_decay: 1e-5 };
    let seeds = Seeds::new(3, EpochId(1));
    let pixels: Vec<u8> = unit("pixels", 4 * 64 * 64 * 3).iter().map(|u| (u * 127.0 + 128.0) as u8).collect();
    let mut first = TrainingPass::start(network(Architecture::AlexNet, true, 64), 5, sgd, seeds, None, &[]).unwrap();
    first.step(&pixels, &[0, 1, 2, 3], 0).unwrap();
    first.publish(&path).unwrap();

    let spec = deepcluster_domain::RunSpec { image_size: 64, ..Default::default() };
    let runtime = runtime();
    let load = || {
        let network = Network::load(&spec, runtime, Some(&path)).unwrap();
        TrainingPass::start(network, 5, sgd, seeds, Some(&path), &[]).unwrap()
    };
    let (mut second, mut third) = (load(), load());
    let a = second.step(&pixels, &[3, 2, 1, 0], 1).unwrap();
    let b = third.step(&pixels, &[3, 2, 1, 0], 1).unwrap();
    assert_eq!(a, b, "the same step from the same checkpoint");
    let (one, two) = (folder.path().join("1"), folder.path().join("2"));
    assert_eq!(second.publish(&one).unwrap(), third.publish(&two).unwrap());

    let other = deepcluster_domain::RunSpec { image_size: 96, ..spec };
    let refused = Network::load(&other, runtime, Some(&path)).err().unwrap().to_string();
    assert!(refused.contains("classifier.1.weight is F32 of shape [4096, 256]"), "{refused}");
}

/// Every weight is finite, and what they make of an image is not.
#[test]
fn features_out_of_the_range_of_numbers_are_noticed() {
    let sgd = SgdOptions { learning_rate: 0.05, momentum: 0.9, weight_decay: 0.0 };
    let pass = |scale: f64| {
        let mut network = network(Architecture::AlexNet, true, 64);
        for tensor in network.tensors.values_mut() {
            *tensor = &*tensor * scale;
        }
        TrainingPass::start(network, 3, sgd, Seeds::new(1, EpochId(0)), None, &[]).unwrap()
    };
    let pixels: Vec<u8> = (0..64 * 64 * 3).map(|n| (n * 7 % 251) as u8).collect();
    pass(1.0).check_features(&pixels).unwrap();
    let sentence = pass(1e20).check_features(&pixels).unwrap_err().to_string();
    assert!(sentence.contains("the features are not finite"), "{sentence}");
}
