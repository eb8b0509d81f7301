//! Requests that no client of ours would send, to the methods of workers that evaluate: as in `requests`.

use crate::requests::{any_of, cached, cases, file, images, judge_stream, network, number, real, still_well, text_strategy};
use crate::stack::Stack;
use deepcluster_proto::v1::clusterer_client::ClustererClient;
use deepcluster_proto::v1::trainer_client::TrainerClient;
use deepcluster_proto::v1::*;
use proptest::test_runner::TestRunner;

fn classified(runner: &mut TestRunner) -> Option<ClassifiedImages> {
    let (images, classes) = (any_of(runner, &images()), any_of(runner, &file()));
    let first_image = any_of(runner, &number(u64::MAX));
    let digests = vec![DigestsOfShard { file: any_of(runner, &file()), first_image }];
    let cache = any_of(runner, &cached()).into_iter().collect();
    (first_image % 5 != 2).then_some(ClassifiedImages { images, classes, cache, digests })
}

fn probes(runner: &mut TestRunner) -> Option<Probes> {
    let counts = number(u32::MAX);
    let probes = Probes {
        layers: (0..2).map(|_| any_of(runner, &text_strategy())).collect(),
        n_classes: any_of(runner, &counts),
        values: any_of(runner, &counts),
        standardise: any_of(runner, &counts) % 2 == 0,
        learning_rate: any_of(runner, &real()),
        momentum: any_of(runner, &real()),
        weight_decay: any_of(runner, &real()),
    };
    (probes.n_classes != 2).then_some(probes)
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_requests_for_evaluations_are_refused() {
    let mut stack = Stack::start();
    let runner = &mut TestRunner::deterministic();
    let mut clusterer = ClustererClient::new(stack.workers[1].channel());
    let mut trainer = TrainerClient::new(stack.workers[2].channel());
    let (text, counts, large) = (text_strategy(), number(u32::MAX), number(u64::MAX));
    for _ in 0..cases() {
        let (output, seed) = (any_of(runner, &text), any_of(runner, &large));
        let request = ProbeRequest {
            images: classified(runner),
            network: any_of(runner, &network()),
            seed,
            probes: probes(runner),
            batch: any_of(runner, &counts),
            epochs: any_of(runner, &counts),
            output: output.clone(),
            save_every: any_of(runner, &text),
            save_to: any_of(runner, &text),
            saved: any_of(runner, &file()),
        };
        judge_stream(&format!("{request:?}"), trainer.probe(request.clone())).await;
        let request = ScoreRequest {
            images: classified(runner),
            network: any_of(runner, &network()),
            seed,
            probes: probes(runner),
            trained: any_of(runner, &file()),
            batch: any_of(runner, &counts),
            ten_crops: seed % 2 == 0,
        };
        judge_stream(&format!("{request:?}"), trainer.score(request.clone())).await;
        let classifier = Some(Classifier { n_classes: any_of(runner, &counts), all_layers: seed % 2 == 0 });
        let request = FinetuneRequest {
            images: classified(runner),
            network: any_of(runner, &network()),
            seed,
            classifier,
            batch: any_of(runner, &counts),
            steps: any_of(runner, &large),
            learning_rate: any_of(runner, &real()),
            halve_every: any_of(runner, &large),
            momentum: any_of(runner, &real()),
            weight_decay: any_of(runner, &real()),
            output: output.clone(),
            save_every: any_of(runner, &text),
            save_to: any_of(runner, &text),
            saved: any_of(runner, &file()),
        };
        judge_stream(&format!("{request:?}"), trainer.finetune(request.clone())).await;
        let request = PredictRequest {
            images: classified(runner),
            network: any_of(runner, &network()),
            seed,
            classifier,
            trained: any_of(runner, &file()),
            batch: any_of(runner, &counts),
            ten_crops: seed % 2 == 0,
            output: output.clone(),
        };
        judge_stream(&format!("{request:?}"), trainer.predict(request.clone())).await;
        let request = AscendRequest {
            network: any_of(runner, &network()),
            seed,
            layer: any_of(runner, &text),
            filters: (0..2).map(|_| any_of(runner, &counts)).collect(),
            steps: any_of(runner, &counts),
            learning_rate: any_of(runner, &real()),
            batch: any_of(runner, &counts),
            output: output.clone(),
        };
        judge_stream(&format!("{request:?}"), trainer.ascend(request.clone())).await;
        let request = SearchRequest {
            features: (0..2).filter_map(|_| any_of(runner, &file())).collect(),
            queries: (0..2).filter_map(|_| any_of(runner, &file())).collect(),
            neighbours: any_of(runner, &counts),
            whiten: any_of(runner, &file()),
            pca: any_of(runner, &counts),
            whitened: seed % 2 == 0,
            seed,
            output,
            device: any_of(runner, &text),
            mask: any_of(runner, &file()),
        };
        judge_stream(&format!("{request:?}"), clusterer.search(request.clone())).await;
    }
    println!("{} requests to each of 6 methods", cases());
    for worker in &mut stack.workers {
        still_well(worker).await;
    }
}
