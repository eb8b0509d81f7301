//! `deepcluster`: the command line.
#![forbid(unsafe_code)]

mod assign;
mod calls;
mod change_run;
mod client;
mod demo_images;
mod embedded;
mod eval;
mod export;
mod failure;
mod local;
mod neighbours;
mod plan;
mod report;
mod server;
mod show;
mod snapshot;
mod sort;
mod spec_args;
mod tag_args;
mod train;
mod verify;
mod visualize;

use change_run::RunChanges;
use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use client::{Client, NoRoom, run_json, state_name};
use deepcluster_proto::run_spec_to_wire;
use deepcluster_proto::v1::Run;
use demo_images::DemoImages;
use embedded::ServicesArgs;
use eval::Eval;
use export::ExportArgs;
use failure::{Failure, say};
use neighbours::NeighboursArgs;
use plan::PlanArgs;
use serde_json::json;
use server::Server;
use show::Show;
use sort::SortArgs;
use spec_args::SpecArgs;
use std::path::PathBuf;
use std::process::ExitCode;
use tag_args::{FilterArgs, TagArgs};
use visualize::Visualize;

/// DeepCluster: a folder of unlabelled images in; a trained convnet and a cluster for every image out
#[derive(Parser)]
#[command(name = "deepcluster", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train on a folder of images, with all services on this machine
    #[command(allow_negative_numbers = true)]
    Train {
        /// Folder of images
        images: PathBuf,
        /// The volume: where the run and everything it makes goes
        #[arg(long, value_name = "VOLUME")]
        out: PathBuf,
        #[command(flatten)]
        spec: SpecArgs,
        #[command(flatten)]
        services: ServicesArgs,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Say what a run would take of time, memory and disk, by a short measurement on this machine
    #[command(allow_negative_numbers = true)]
    Plan {
        #[command(flatten)]
        plan: PlanArgs,
        #[command(flatten)]
        spec: SpecArgs,
        #[command(flatten)]
        services: ServicesArgs,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Go on with a run that was interrupted
    Resume {
        /// The volume
        volume: PathBuf,
        /// Which run, when several could go on
        run: Option<String>,
        #[command(flatten)]
        changes: RunChanges,
        #[command(flatten)]
        services: ServicesArgs,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Queue a run on a coordinator
    #[command(allow_negative_numbers = true)]
    Submit {
        /// Folder of images, relative to the images root of the services
        images: String,
        #[command(flatten)]
        spec: SpecArgs,
        #[command(flatten)]
        tags: TagArgs,
        /// An id of your choice: the same command sent again then makes no second run
        #[arg(long, value_name = "ID", default_value = "")]
        request_id: String,
        #[command(flatten)]
        server: Server,
    },
    /// List the runs of a coordinator
    Runs {
        #[command(flatten)]
        filter: FilterArgs,
        #[command(flatten)]
        server: Server,
    },
    /// Say something about a run: its priority, labels, a note
    #[command(allow_negative_numbers = true)]
    Tag {
        #[command(flatten)]
        named: Named,
        #[command(flatten)]
        tags: TagArgs,
    },
    /// Show a run, the newest unless one is named
    Show(Named),
    /// Follow a run, the newest unless one is named
    Watch(Named),
    /// Stop a run for now
    Pause(Named),
    /// Go on with a paused run
    Unpause(Named),
    /// End a run for good
    Cancel(Named),
    /// Print path, cluster and distance of every image of a run
    Labels {
        /// Folder of the run
        run_dir: PathBuf,
        /// One JSON object a line instead of CSV
        #[arg(long)]
        json: bool,
    },
    /// Print cluster and distance of images that took no part in a run
    Assign {
        /// Folder of the run
        run_dir: PathBuf,
        /// Images, and folders of images
        #[arg(required = true)]
        images: Vec<PathBuf>,
        /// One JSON object a line instead of CSV
        #[arg(long)]
        json: bool,
    },
    /// Write the network of a run: its weights for PyTorch, or all of it for ONNX
    Export(ExportArgs),
    /// Print the most similar images of a run for each of some images
    Neighbours(NeighboursArgs),
    /// Lay the images of a run out in one folder a cluster
    Sort(SortArgs),
    /// Say how good a run's features and clusters are, by the field's protocols
    #[command(subcommand)]
    Eval(Eval),
    /// Write one page that says what came of a run: a verdict, curves, a map and an atlas of the clusters
    Report {
        /// Folder of the run
        run_dir: PathBuf,
        /// The .html file to write
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
        /// A .png file to write the atlas to as well: one row of images for each of the 24 largest clusters
        #[arg(long, value_name = "FILE")]
        atlas: Option<PathBuf>,
        /// Folder of the run's images, where it is not the one that `train` was given
        #[arg(long, value_name = "FOLDER")]
        images: Option<PathBuf>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Make pictures of what a network has learned
    #[command(subcommand)]
    Visualize(Visualize),
    /// Check every file of a volume, or of one run, against what its records promise
    Verify {
        /// The volume
        volume: PathBuf,
        /// Which run; all unless one is named
        run: Option<String>,
        /// Drop what cannot be trusted; `resume` makes it anew
        #[arg(long)]
        repair: bool,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Make a folder of pictures in ten classes to try the system on
    DemoImages {
        /// Where the ten folders go
        dir: PathBuf,
        /// Pictures over all classes together
        #[arg(long, default_value_t = 2000)]
        count: u32,
        /// Height and width of each, in pixels
        #[arg(long, default_value_t = 64)]
        size: u32,
        /// Another seed draws other pictures
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Write JPEGs instead of PNGs
        #[arg(long)]
        jpeg: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

/// A run of a coordinator.
#[derive(clap::Args)]
struct Named {
    /// Name of the run
    run: Option<String>,
    #[command(flatten)]
    server: Server,
}

fn main() -> ExitCode {
    // One thread: children get a signal when the thread that started them ends, so that must be the main one.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match (parse(), runtime) {
        (Ok(cli), Ok(runtime)) => runtime.block_on(execute(cli.command)),
        (Err(failure), _) => Err(failure),
        (_, Err(error)) => Err(Failure::other(error.to_string())),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("deepcluster: {failure}");
            }
            ExitCode::from(failure.code)
        }
    }
}

/// The command line; a mistake in it is one sentence, and exit code 2.
fn parse() -> Result<Cli, Failure> {
    let error = match Cli::try_parse() {
        Ok(cli) => return Ok(cli),
        Err(error) => error,
    };
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        error.exit();
    }
    let text = error.to_string();
    // Hints and usage follow after an empty line.
    let sentence = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    Err(Failure::usage(sentence.split_whitespace().collect::<Vec<_>>().join(" ")))
}

async fn execute(command: Command) -> Result<(), Failure> {
    match command {
        Command::Train { images, out, spec, services, json } => {
            let spec = spec.on_this_machine()?.spec(train::images_below_root(&images)?);
            train::train(spec, &out, &services, json).await.map_err(Failure::unfinished)
        }
        Command::Plan { plan, spec, services, json } => {
            let spec = spec.on_this_machine()?;
            plan.plan(|images| spec.spec(images), &services, json).await
        }
        Command::Resume { volume, run, changes, services, json } => {
            train::resume(&volume, run, &changes, &services, json).await.map_err(Failure::unfinished)
        }
        Command::Submit { images, spec, tags, request_id, server } => {
            if images.is_empty() {
                return Err(Failure::usage("the folder of images has no name; '.' is all of the services' images"));
            }
            let spec = spec.spec(images);
            // Zero stands for the default on the wire, so it has to be refused here.
            spec.validate().map_err(|error| Failure::usage(error.to_string()))?;
            let request = tags.create(run_spec_to_wire(&spec), request_id)?;
            let run = Client::connect(&server).await?.create(request).await?;
            print_run(&run, server.json)
        }
        Command::Runs { filter, server } => {
            let request = filter.list()?;
            for run in Client::connect(&server).await?.list(request).await? {
                print_run(&run, server.json)?;
            }
            Ok(())
        }
        Command::Tag { tags, .. } if tags.is_empty() => Err(Failure::usage("nothing to say: name --priority, --label or --note")),
        Command::Tag { named, tags } => change(named, async |client, run| client.update(tags.update(run.run_id)?).await).await,
        Command::Show(named) => change(named, async |_, run| Ok(run)).await,
        Command::Watch(Named { run, server }) => {
            let mut client = Client::connect(&server).await?;
            let run = client.find(run.as_deref()).await?;
            client.follow(&run.run_id, NoRoom::Waits, &mut Show::new(server.json)).await
        }
        Command::Pause(named) => change(named, async |client, run| client.pause(run.run_id).await).await,
        Command::Unpause(named) => change(named, async |client, run| client.resume(run.run_id).await).await,
        Command::Cancel(named) => change(named, async |client, run| client.cancel(run.run_id).await).await,
        Command::Labels { run_dir, json } => local::labels(&run_dir, json),
        Command::Assign { run_dir, images, json } => assign::assign(&run_dir, &images, json).await,
        Command::Export(export) => export.run(),
        Command::Neighbours(neighbours) => neighbours.run().await,
        Command::Sort(sort) => sort.run(),
        Command::Eval(eval) => eval.run().await,
        Command::Report { run_dir, to, atlas, images, json } => {
            report::report(&run_dir, &to, atlas.as_deref(), images.as_deref(), json)
        }
        Command::Visualize(visualize) => visualize.run().await,
        Command::Verify { volume, run, repair, json } => verify::verify(&volume, run.as_deref(), repair, json),
        Command::DemoImages { dir, count, size, seed, jpeg, json } => {
            let n = DemoImages { count, size, seed, jpeg }.write(&dir).map_err(|error| Failure::usage(error.to_string()))?;
            if json {
                return say(json!({"folder": dir, "pictures": n}));
            }
            say(format!("wrote {n} pictures to {}", dir.display()))
        }
    }
}

/// Finds a run, does something to it, and prints what it is then.
async fn change(named: Named, act: impl AsyncFnOnce(&mut Client, Run) -> Result<Run, Failure>) -> Result<(), Failure> {
    let mut client = Client::connect(&named.server).await?;
    let run = client.find(named.run.as_deref()).await?;
    let run = act(&mut client, run).await?;
    print_run(&run, named.server.json)
}

fn print_run(run: &Run, json: bool) -> Result<(), Failure> {
    if json {
        return say(run_json(run));
    }
    let epochs = run.spec.as_ref().map_or(0, |spec| spec.epochs);
    let (id, state, done) = (&run.run_id, state_name(run), run.epochs_done);
    let (images, k) = (run.n_images, run.k);
    let why = if run.message.is_empty() { String::new() } else { format!("  ({})", run.message) };
    let mut labels: Vec<String> = run.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.sort();
    let labels = if labels.is_empty() { String::new() } else { format!("  [{}]", labels.join(" ")) };
    let note = if run.note.is_empty() { String::new() } else { format!("  {}", run.note) };
    say(format!("{id}  {state:9}  epoch {done}/{epochs}  {images} images  k = {k}{why}{labels}{note}"))
}
