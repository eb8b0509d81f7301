//! Numbers for Prometheus: the endpoint, and those that every service has.
//!
//! | name | what |
//! |---|---|
//! | `deepcluster_rpcs_total{method,code}` | calls, by how their answers began |
//! | `deepcluster_jobs_waiting` | jobs that wait behind another |
//! | `deepcluster_job_seconds` | how long jobs took |
//! | `deepcluster_images_total` | images that went through the network (extractor, trainer) |
//! | `deepcluster_data_wait_seconds` | how long the network waited for a batch of images |
//! | `deepcluster_step_seconds`, `deepcluster_loss` | steps of training, and the mean loss of the epoch so far (trainer) |
//! | `deepcluster_kmeans_objective` | sum of squared distances (clusterer) |
//! | `deepcluster_shards_waiting`, `deepcluster_shards_under_way` | shards without and with an extractor (coordinator) |
//! | `deepcluster_extractors_ready`, `deepcluster_shard_seconds` | (coordinator) |
//! | `deepcluster_inference_batches_total`, `deepcluster_inference_images_total` | of clients, answered (coordinator) |
//! | `deepcluster_runs{state}`, `deepcluster_epochs_total` | (coordinator) |
//! | `deepcluster_run_loss{run}`, `deepcluster_run_kmeans_objective{run}`, `deepcluster_run_nmi_last{run}` | of the last epoch (coordinator) |
//! | `deepcluster_gpu_memory_bytes{gpu}` | memory in use on each GPU, by whomever |

use metrics::{gauge, histogram};
use metrics_exporter_prometheus::PrometheusBuilder;
use nvml_wrapper::Nvml;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Bounds of the histograms, in seconds: steps take milliseconds, jobs take hours.
const BOUNDS: [f64; 16] =
    [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0, 30_000.0];

/// How often GPUs are asked for their memory.
const ASK_GPUS: Duration = Duration::from_secs(10);

/// Serves the numbers of this process at every path of an address. Must be called in a tokio runtime.
///
/// # Errors
/// One clause that names the address.
pub fn serve(address: SocketAddr) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("--metrics {address}: {error}");
    let builder = PrometheusBuilder::new().with_http_listener(address).set_buckets(&BOUNDS).map_err(|error| failed(&error))?;
    builder.install().map_err(|error| failed(&error))?;
    // Without a driver there is no GPU to tell of.
    if let Ok(nvml) = Nvml::init() {
        let asks = move || {
            loop {
                tell_gpus(&nvml);
                std::thread::sleep(ASK_GPUS);
            }
        };
        std::thread::Builder::new().name("gpus".to_owned()).spawn(asks).map_err(|error| failed(&error))?;
    }
    Ok(())
}

fn tell_gpus(nvml: &Nvml) {
    for index in 0..nvml.device_count().unwrap_or(0) {
        if let Ok(memory) = nvml.device_by_index(index).and_then(|gpu| gpu.memory_info()) {
            gauge!("deepcluster_gpu_memory_bytes", "gpu" => index.to_string()).set(memory.used as f64);
        }
    }
}

/// An iterator over batches that tells how long each was waited for.
pub struct Waited<I>(pub I);

impl<I: Iterator> Iterator for Waited<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        let start = Instant::now();
        let batch = self.0.next();
        histogram!("deepcluster_data_wait_seconds").record(start.elapsed());
        batch
    }
}
