//! bf16 is f32 with fewer digits: features and losses agree.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use deepcluster_domain::{DeviceChoice, EpochId, Precision, RunSpec, Seeds};
use deepcluster_network::{Network, Runtime, SgdOptions, TrainingPass};
use std::sync::Mutex;

const SIZE: usize = 64;
const BATCH: usize = 16;

/// libtorch draws weights from one generator for all threads.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn network(precision: Precision) -> Network {
    let runtime = Runtime::prepare(DeviceChoice::Cpu, precision, 2).unwrap();
    Network::load(&RunSpec { image_size: SIZE as u32, ..RunSpec::default() }, runtime, None).unwrap()
}

/// Pictures of stripes: those of a class have one direction and width.
fn pictures() -> (Vec<u8>, Vec<i64>) {
    let labels: Vec<i64> = (0..BATCH as i64).map(|image| image % 4).collect();
    let mut pixels = Vec::new();
    for (image, class) in labels.iter().enumerate() {
        let (dx, dy) = [(1, 0), (0, 1), (1, 1), (3, 1)][*class as usize];
        for y in 0..SIZE {
            let stripe = |x: usize| (((x * dx + y * dy + image * 5) % 16) * 16) as u8;
            pixels.extend((0..SIZE).flat_map(|x| [stripe(x), stripe(x) / 2, 255 - stripe(x)]));
        }
    }
    (pixels, labels)
}

#[test]
fn features_in_bf16_point_the_same_way() {
    let _turn = ONE_AT_A_TIME.lock();
    let (pixels, _) = pictures();
    let [wide, narrow] =
        [Precision::F32, Precision::Bf16].map(|precision| network(precision).folded().unwrap().features(&pixels).unwrap());
    let width = wide.len() / BATCH;
    // The bias that all images share says nothing about one of them.
    let centred = |features: &[f32]| -> Vec<f64> {
        let mean = |column: usize| (0..BATCH).map(|row| f64::from(features[row * width + column])).sum::<f64>() / BATCH as f64;
        features.iter().enumerate().map(|(at, value)| f64::from(*value) - mean(at % width)).collect()
    };
    let (wide, narrow) = (centred(&wide), centred(&narrow));
    for (row, (a, b)) in wide.chunks(width).zip(narrow.chunks(width)).enumerate() {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        println!("image {row}: cosine {cosine:.5}");
        assert!(cosine > 0.99, "image {row}: cosine {cosine}");
    }
}

#[test]
fn training_in_bf16_follows_training_in_f32() {
    let _turn = ONE_AT_A_TIME.lock();
    let (pixels, labels) = pictures();
    let sgd = SgdOptions { learning_rate: 0.01, momentum: 0.9, weight_decay: 1e-5 };
    let [wide, narrow] = [Precision::F32, Precision::Bf16].map(|precision| {
        let pass = TrainingPass::start(network(precision), 4, sgd, Seeds::new(31, EpochId(0)), None, &[]).unwrap();
        let mut pass = pass.without_dropout();
        (0..12).map(|step| pass.step(&pixels, &labels, step).unwrap()).collect::<Vec<f64>>()
    });
    println!("f32 {wide:.4?}\nbf16 {narrow:.4?}");
    assert!(wide[11] < 0.9 * wide[0], "nothing was learned: {wide:?}");
    for (step, (a, b)) in wide.iter().zip(&narrow).enumerate() {
        assert!((b / a - 1.0).abs() < 0.02, "step {step}: loss {a} in f32, {b} in bf16");
    }
}
