//! `neighbours`: the images of a run that are most similar to some images, by the cosine of whitened features.
//!
//! Features and whitening are those of the last epoch's clusters, so they come from the network that came into it. An image of the
//! run finds itself.

use crate::eval::site::Site;
use crate::eval::subject::Subject;
use crate::failure::{Failure, say};
use crate::local::{epoch_before, images_and_labels, last_epoch};
use crate::snapshot::writable_volume;
use deepcluster_domain::{RunId, RunSpec};
use deepcluster_images::find::describe;
use deepcluster_proto::network_of;
use deepcluster_proto::v1::{FeatureDtype, File, Progress, SearchRequest};
use deepcluster_service::requests::file_to_wire;
use deepcluster_volume::image_list::ImageEntry;
use deepcluster_volume::names;
use deepcluster_volume::publish::FileRecord;
use deepcluster_volume::records::{RunRecord, read_record};
use deepcluster_volume::{RunFolder, Volume, npy};
use serde_json::json;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Whose neighbours are wanted.
#[derive(clap::Args)]
pub struct NeighboursArgs {
    /// Folder of the run
    run_dir: PathBuf,
    /// Images, of the run or not
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// How many are found for each
    #[arg(short, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    n: u32,
    /// One JSON object a line instead of CSV
    #[arg(long)]
    json: bool,
}

/// A run in which neighbours are sought.
struct Sought {
    /// Its network, as it came into the last epoch.
    subject: Subject,
    /// Its images.
    images: Vec<ImageEntry>,
    /// Whitening of the last epoch.
    whiten: FileRecord,
    /// Features of its images, whitened.
    whitened: FileRecord,
    /// Negative for images that take no part.
    labels: FileRecord,
}

/// What was found for one image: rows of the run's images with their cosines, or why it could not be read.
type Found = Result<Vec<(usize, f32)>, String>;

impl NeighboursArgs {
    /// Searches, and prints what was found.
    ///
    /// # Errors
    /// When the folder is no run of a volume or holds no whitened features, or an image is not there or cannot be read.
    pub async fn run(&self) -> Result<(), Failure> {
        let sought = self.sought()?;
        let queries = self.images.iter().map(|image| listed(image)).collect::<Result<Vec<_>, Failure>>()?;
        let name = format!("neighbours-{}", std::process::id());
        let found = sought
            .subject
            .with_site(&name, self.json, async |site| {
                let outcome = sought.search(site, queries, self.n as usize).await;
                site.clean()?;
                outcome
            })
            .await?;
        self.print(&sought.images, &found)?;
        let unread = self.images.iter().zip(&found).find_map(|(image, found)| Some((image, found.as_ref().err()?)));
        match unread {
            None => Ok(()),
            Some((image, why)) => Err(Failure::usage(format!("{}: {why}", image.display()))),
        }
    }

    fn sought(&self) -> Result<Sought, Failure> {
        let last = last_epoch(&RunFolder::at(&self.run_dir))?;
        let Some(whitened) = last.manifest.files.whitened.clone() else {
            let (run, epoch) = (self.run_dir.display(), last.manifest.epoch);
            return Err(Failure::usage(format!(
                "{run} was made by a version that kept no whitened features (epoch {epoch} has no whitened.npy)"
            )));
        };
        last.verified("whitened.npy")?;
        last.verified("whiten.safetensors")?;
        let (root, run_id, snapshot) = writable_volume(&self.run_dir)?;
        let id = run_id.parse::<RunId>().map_err(|error| Failure::usage(error.to_string()))?;
        let volume = Volume::new(root);
        let run = volume.run(&id);
        let record: RunRecord = read_record(&run.run_json())?;
        let (images, _) = images_and_labels(&run, &record, &last)?;
        let spec = RunSpec::try_from(record.spec).map_err(|error| Failure::usage(error.to_string()))?;
        let before = epoch_before(&run, &last)?;
        let checkpoint = before.as_ref().map(|before| &before.manifest.files.checkpoint);
        let network = network_of(&spec, checkpoint.or(record.resolved.init.as_ref()).map(file_to_wire));
        let epoch = before.map(|before| before.manifest.epoch);
        let subject = Subject { volume, run_id, run, spec, epoch, network, snapshot };
        let (whiten, labels) = (last.manifest.files.whiten, last.manifest.files.labels);
        Ok(Sought { subject, images, whiten, whitened, labels })
    }

    fn print(&self, images: &[ImageEntry], found: &[Found]) -> Result<(), Failure> {
        if self.json {
            return self.images.iter().zip(found).try_for_each(|(query, found)| print_json(query, images, found));
        }
        if found.iter().all(Result::is_err) {
            return Ok(());
        }
        let failed = |error: &dyn std::fmt::Display| Failure::other(error.to_string());
        let mut writer = csv::Writer::from_writer(Vec::new());
        writer.write_record(["query", "rank", "path", "similarity"]).map_err(|error| failed(&error))?;
        for (query, found) in self.images.iter().zip(found) {
            for (rank, (row, similarity)) in (1_u32..).zip(found.iter().flatten()) {
                let (rank, similarity) = (rank.to_string(), similarity.to_string());
                let path = images.get(*row).map(|image| image.path.as_slice()).unwrap_or_default();
                let (query, path) = (names::escape(query.as_os_str().as_bytes()), names::escape(path));
                let fields = [&*query, &*rank, &*path, &*similarity];
                writer.write_record(fields).map_err(|error| failed(&error))?;
            }
        }
        let text = writer.into_inner().map_err(|error| failed(error.error()))?;
        std::io::stdout().lock().write_all(&text).map_err(Failure::output)
    }
}

/// An image by its path below the services' root, which is `/`.
fn listed(image: &Path) -> Result<ImageEntry, Failure> {
    let real = fs::canonicalize(image).map_err(|error| Failure::usage(format!("{}: {error}", image.display())))?;
    if !real.is_file() {
        return Err(Failure::usage(format!("{} is not a file; name images, not their folders", image.display())));
    }
    let bytes = real.as_os_str().as_bytes();
    let relative = OsStr::from_bytes(bytes.strip_prefix(b"/").unwrap_or(bytes));
    Ok(describe(Path::new("/"), Path::new(relative)))
}

fn print_json(query: &Path, images: &[ImageEntry], found: &Found) -> Result<(), Failure> {
    let query = names::escape(query.as_os_str().as_bytes());
    let found = match found {
        Ok(found) => found,
        Err(why) => return say(json!({"query": query, "skipped": why})),
    };
    for (rank, (row, similarity)) in (1_u32..).zip(found) {
        let path = images.get(*row).map(|image| names::escape(&image.path)).unwrap_or_default();
        say(json!({"query": query, "rank": rank, "path": path, "similarity": similarity}))?;
    }
    Ok(())
}

impl Sought {
    async fn search(&self, site: &Site<'_>, queries: Vec<ImageEntry>, n: usize) -> Result<Vec<Found>, Failure> {
        let (files, unread, n_queries) = self.extract(site, queries).await?;
        let request = SearchRequest {
            features: vec![file_to_wire(&self.whitened)],
            queries: files,
            neighbours: n as u32,
            whiten: Some(file_to_wire(&self.whiten)),
            whitened: true,
            // Rows of skipped images are zeros, which are more similar than what points the other way.
            mask: Some(file_to_wire(&self.labels)),
            output: self.subject.volume.relative(&site.folder)?,
            device: self.subject.spec.device.to_string(),
            ..SearchRequest::default()
        };
        let mut told = |progress: &Progress| site.told(&progress.phase, progress.done, progress.total, 0.0);
        let result = site.calls.search(&request, &mut told).await?;
        let ([_, width], rows) = npy::read_i32_matrix(&site.verified("neighbours", result.neighbours.as_ref())?)?;
        let (_, similarities) = npy::read_f32(&site.verified("similarities", result.similarities.as_ref())?)?;
        let width = width.max(1);
        let lists = rows.chunks(width).zip(similarities.chunks(width)).zip(0_u64..);
        let found: Vec<Found> = lists
            .map(|((rows, similarities), query)| match unread.get(&query) {
                Some(why) => Err(why.clone()),
                None => Ok(self.taking_part(rows, similarities).take(n).collect()),
            })
            .collect();
        match found.len() == n_queries {
            true => Ok(found),
            false => Err(Failure::other(format!("the clusterer answered {} questions of {n_queries}", found.len()))),
        }
    }

    /// Features of the images that are asked about, and why some of those could not be read, by their numbers.
    async fn extract(
        &self,
        site: &Site<'_>,
        queries: Vec<ImageEntry>,
    ) -> Result<(Vec<File>, BTreeMap<u64, String>, usize), Failure> {
        let unreadable = |(at, image): (u64, &ImageEntry)| Some((at, image.skipped.clone()?));
        let mut unread: BTreeMap<u64, String> = (0..).zip(&queries).filter_map(unreadable).collect();
        let n = queries.len();
        let listed = site.listed("queries", String::new(), queries)?;
        let mut files = Vec::new();
        for number in 0..site.n_shards(&listed) {
            let mut request = site.extract_request(&listed, number, "embedding")?;
            // As those of the run's images were stored before they were whitened.
            request.feature_dtype = FeatureDtype::from(self.subject.spec.feature_dtype).into();
            let mut told = |progress: &Progress| site.told(&progress.phase, progress.done, progress.total, 0.0);
            let (_, result) = site.calls.extract(&request, &mut told).await?;
            unread.extend(result.skipped.into_iter().map(|image| (image.index, image.reason)));
            files.extend(result.features);
        }
        Ok((files, unread, n))
    }

    /// What of a list of rows is an image that takes part.
    fn taking_part<'a>(&'a self, rows: &'a [i32], similarities: &'a [f32]) -> impl Iterator<Item = (usize, f32)> + 'a {
        let rows = rows.iter().zip(similarities).map(|(row, similarity)| (*row as usize, *similarity));
        rows.filter(move |(row, _)| self.images.get(*row).is_some_and(|image| image.skipped.is_none()))
    }
}
