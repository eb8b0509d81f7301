//! The ceiling: AlexNet on images that are in memory already, with nothing around it but libtorch.
//!
//!     cargo bench -p deepcluster-network --bench ceiling
#![expect(missing_docs, clippy::expect_used, reason = "a bench has no callers and nobody to tell")]

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use deepcluster_domain::{DeviceChoice, EpochId, Precision, RunSpec, Seeds};
use deepcluster_network::forward::Mode;
use deepcluster_network::{Network, Runtime, SgdOptions, TrainingPass};
use tch::{Kind, Tensor};

const BATCH: i64 = 64;
const SIZE: i64 = 224;
const K: u32 = 1000;

fn network(precision: Precision) -> Network {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = Runtime::prepare(DeviceChoice::Auto, precision, threads).expect("a device");
    Network::load(&RunSpec { image_size: SIZE as u32, ..RunSpec::default() }, runtime, None).expect("a network")
}

fn images(network: &Network) -> Tensor {
    Tensor::randn([BATCH, 3, SIZE, SIZE], (Kind::Float, network.runtime.device))
}

fn ceiling(criterion: &mut Criterion) {
    deepcluster_network::memory::keep();
    let mut group = criterion.benchmark_group("ceiling");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(BATCH as u64));
    for (name, precision) in [("f32", Precision::F32), ("auto", Precision::Auto)] {
        let network = network(precision);
        let images = images(&network);
        group.bench_function(BenchmarkId::new("forward", name), |bencher| {
            let _no_grad = tch::no_grad_guard();
            bencher.iter(|| network.embed(&images, Mode::Eval).expect("a pass").double_value(&[0, 0]));
        });
        let sgd = SgdOptions { learning_rate: 0.05, momentum: 0.9, weight_decay: 1e-5 };
        let mut pass = TrainingPass::start(network, K, sgd, Seeds::new(31, EpochId(0)), None, &[]).expect("a pass");
        let labels: Vec<i64> = (0..BATCH).collect();
        let mut step = 0;
        group.bench_function(BenchmarkId::new("step", name), |bencher| {
            bencher.iter(|| {
                step += 1;
                pass.step_on(&images, &labels, step).expect("a step")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, ceiling);
criterion_main!(benches);
