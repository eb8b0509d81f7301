//! `plan`: what a run would take, before anything runs.

mod calibration;
mod forecast;

use crate::calls::Calls;
use crate::demo_images::DemoImages;
use crate::embedded::{ServicesArgs, Stack};
use crate::failure::{Failure, say};
use crate::train::{images_below_root, while_alive};
use calibration::Site;
use deepcluster_domain::space::human;
use deepcluster_domain::{AutoChoice, RunSpec};
use deepcluster_images::{FindOptions, ImageSearch, find_images};
use deepcluster_volume::image_list::ImageEntry;
use deepcluster_volume::{Volume, space};
pub use forecast::Cost;
use forecast::{Forecast, Seconds, Task};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Drawn pictures that stand for those that are not there.
const DRAWN: u32 = 1000;

/// Their side in pixels, which makes them as large as photographs of ImageNet.
const DRAWN_SIDE: u32 = 432;

/// What to plan.
#[derive(clap::Args)]
pub struct PlanArgs {
    /// Folder of images, of which some are measured; may be missing with --simulate, which then measures drawn pictures
    #[arg(required_unless_present = "simulate")]
    images: Option<PathBuf>,
    /// Plan for so many images like these
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..=10_000_000_000))]
    simulate: Option<u64>,
    /// Where the volume will be; what is free there counts, and what is measured lies there meanwhile
    #[arg(long, value_name = "VOLUME", default_value = ".")]
    out: PathBuf,
}

impl PlanArgs {
    /// Measures a sample and prints what the run would take.
    ///
    /// # Errors
    /// When spec or images do not do, or a service fails.
    pub async fn plan(self, spec: impl FnOnce(String) -> RunSpec, services: &ServicesArgs, json: bool) -> Result<(), Failure> {
        services.check()?;
        // The volume may be yet to be made.
        let nearest = |out: PathBuf| out.ancestors().find(|folder| folder.is_dir()).map(Path::to_owned);
        let parent = std::path::absolute(&self.out).ok().and_then(nearest).unwrap_or_else(|| PathBuf::from("/"));
        let scratch = tempfile::Builder::new().prefix(".deepcluster-plan-").tempdir_in(&parent);
        let scratch = scratch.map_err(|error| Failure::usage(format!("{}: {error}", parent.display())))?;
        let folder = match &self.images {
            Some(folder) => folder.clone(),
            None => draw(&scratch.path().join("images"))?,
        };
        let mut spec = spec(images_below_root(&folder)?);
        spec.validate().map_err(|error| Failure::usage(error.to_string()))?;
        let options = FindOptions { include_hidden: spec.include_hidden, volume: Some(&self.out) };
        let found = find_images(&folder, options).map_err(|error| Failure::usage(error.to_string()))?;
        let ImageSearch { images, passed_over } = found;
        let passed_over = passed_over.sentence().unwrap_or_default();
        let readable = images.iter().filter(|image| image.skipped.is_none()).count() as u64;
        let n = self.simulate.unwrap_or(readable);
        let (k, choices) = spec.resolve(n as usize).map_err(|error| Failure::usage(error.to_string()))?;
        // Decoded images of earlier runs make room when it is needed.
        let free = space::available(&parent)? + space::used(&Volume::new(&self.out).caches());
        let cache_limit = services.cache_limit()?;
        let task = Task { spec: &spec, n, k, extractors: services.extractors(), cache_limit, free };
        let measured = measure(&scratch.path().join("volume"), task, &images, services).await?;
        let forecast = Forecast::of(task, &measured);
        if json {
            let mut line = to_json(task, &choices, &forecast);
            line["passed_over"] = json!(passed_over);
            return say(line);
        }
        if self.images.is_none() {
            say(format!("measured on {DRAWN} drawn pictures; name a folder to measure photographs"))?;
        }
        if !passed_over.is_empty() {
            say(&passed_over)?;
        }
        for AutoChoice { option, value, reason } in &choices {
            say(format!("--{option} {value} (auto): {reason}"))?;
        }
        report(task, &forecast, &parent)
    }
}

fn draw(folder: &Path) -> Result<PathBuf, Failure> {
    let demo = DemoImages { count: DRAWN, size: DRAWN_SIDE, seed: 1, jpeg: false };
    demo.write(folder).map_err(|error| Failure::usage(error.to_string()))?;
    Ok(folder.to_owned())
}

/// Starts the services on a volume of their own and lets them work on a sample.
async fn measure(
    volume: &Path,
    Task { spec, n, k, .. }: Task<'_>,
    images: &[ImageEntry],
    services: &ServicesArgs,
) -> Result<forecast::Calibration, Failure> {
    let stack = Stack::start(volume, services)?;
    let of = |name: &str| stack.service(name).ok_or_else(|| Failure::other(format!("there is no {name}")));
    let names = ["coordinator", "extractor-0", "clusterer", "trainer"];
    let found = [of(names[0])?, of(names[1])?, of(names[2])?, of(names[3])?];
    let pids = found.each_ref().map(|(_, pid)| *pid);
    let calls = Calls::to(&found[1].0, &found[2].0, &found[3].0)?;
    let peaks = move || pids.map(|pid| deepcluster_service::memory::peak_resident(pid).unwrap_or(0));
    let site = Site { calls, volume: Volume::new(volume), spec, images, n, k, peaks: &peaks };
    while_alive(stack, "", site.calibrate()).await
}

fn report(task: Task<'_>, forecast: &Forecast, at: &Path) -> Result<(), Failure> {
    let Task { spec, n, k, .. } = task;
    let (first, later, all) = (forecast.first, forecast.later, forecast.whole_run(spec.epochs));
    say(format!("{n} images, k = {k}, {} at {} pixels, {} epochs", spec.architecture, spec.image_size, spec.epochs))?;
    say(format!("\n{:14} {:>14} {:>14} {:>14}", "", "first epoch", "later epochs", "whole run"))?;
    for ((first, later), all) in first.parts().into_iter().zip(later.parts()).zip(all.parts()) {
        let [first_s, later_s, all_s] = [first.1, later.1, all.1].map(duration);
        say(format!("{:14} {first_s:>14} {later_s:>14} {all_s:>14}", first.0))?;
    }
    say("\nmemory of each process at its peak, without that of GPUs")?;
    for (service, bytes) in forecast.memory {
        say(format!("{service:14} {:>14}", human(bytes)))?;
    }
    let space = forecast.space;
    say(format!("\nroom on the volume; {} are free at {}", human(task.free), at.display()))?;
    say(format!("{:14} {:>14}  at the most", "the run", human(space.whole_run())))?;
    say(format!("{:14} {:>14}  gone when the epoch is committed", "- features", human(space.features)))?;
    if space.points > 0 {
        say(format!("{:14} {:>14}  gone when it is clustered", "- whitened", human(space.points)))?;
    }
    say(format!("{:14} {:>14}  in the middle of an epoch", "- training", human(space.saved)))?;
    say(format!("{:14} {:>14}  {} at a time", "- an epoch", human(space.epoch), space.n_epochs))?;
    let kept = match forecast.kept {
        share if share >= 1.0 => "all are kept".to_owned(),
        share => format!("{:.0} % fit (--cache-limit), the others are decoded in every epoch", share * 100.0),
    };
    say(format!("{:14} {:>14}  {kept}", "decoded images", human(forecast.cache)))?;
    match space.whole_run() > task.free {
        true => say("\nThe run does not fit."),
        false => Ok(()),
    }
}

fn to_json(task: Task<'_>, choices: &[AutoChoice], forecast: &Forecast) -> Value {
    let choice = |choice: &AutoChoice| json!({"option": choice.option, "value": choice.value, "reason": choice.reason});
    let seconds = |seconds: Seconds| json!({"extract_s": seconds.extract, "cluster_s": seconds.cluster, "train_s": seconds.train, "sum_s": seconds.sum()});
    let space = forecast.space;
    json!({
        "images": task.n,
        "k": task.k,
        "auto": choices.iter().map(choice).collect::<Vec<_>>(),
        "epochs": task.spec.epochs,
        "extractors": task.extractors,
        "first_epoch": seconds(forecast.first),
        "later_epochs": seconds(forecast.later),
        "whole_run": seconds(forecast.whole_run(task.spec.epochs)),
        "memory": forecast.memory.iter().map(|(service, bytes)| ((*service).to_owned(), json!(bytes))).collect::<serde_json::Map<_, _>>(),
        "volume": {
            "free": task.free,
            "whole_run": space.whole_run(),
            "fits": space.whole_run() <= task.free,
            "features": space.features,
            "whitened": space.points,
            "training": space.saved,
            "epoch": space.epoch,
            "epochs_at_a_time": space.n_epochs,
            "decoded_images": forecast.cache,
            "decoded_images_kept": forecast.kept,
        },
    })
}

/// "3.2 s", "4 min 10 s", "2 d 3 h".
fn duration(seconds: f64) -> String {
    let whole = |unit: f64| (seconds / unit) as u64;
    let two = |large: u64, large_unit: &str, small: u64, small_unit: &str| format!("{large} {large_unit} {small} {small_unit}");
    match seconds {
        under if under < 100.0 => format!("{under:.1} s"),
        under if under < 3600.0 => two(whole(60.0), "min", whole(1.0) % 60, "s"),
        under if under < 86_400.0 => two(whole(3600.0), "h", whole(60.0) % 60, "min"),
        _ => two(whole(86_400.0), "d", whole(3600.0) % 24, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units() {
        let said = [3.24, 250.0, 3700.0, 183_600.0].map(duration);
        assert_eq!(said, ["3.2 s", "4 min 10 s", "1 h 1 min", "2 d 3 h"]);
    }
}
