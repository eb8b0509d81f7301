//! Saves training on its way.

use crate::train::status;
use deepcluster_domain::SaveEvery;
use deepcluster_network::NetworkError;
use deepcluster_proto::FieldError;
use deepcluster_proto::v1::TrainSaved;
use deepcluster_service::JobContext;
use deepcluster_service::requests::{file_to_wire, volume_status};
use deepcluster_volume::Volume;
use deepcluster_volume::publish::{Digest, TEMPORARY};
use std::path::Path;
use std::time::Instant;
use tonic::Status;

/// Knows when training is to be saved, and where.
pub(crate) struct Saver<'a> {
    volume: &'a Volume,
    /// How often and where to; none when it need not be saved.
    wish: Option<(SaveEvery, &'a str)>,
    last: Instant,
}

impl<'a> Saver<'a> {
    pub(crate) fn of(volume: &'a Volume, save_every: &str, save_to: &'a str) -> Result<Self, Status> {
        let wish = match save_every {
            "" => None,
            every => {
                let every = every.parse().map_err(|error| FieldError::new("save_every", error))?;
                volume.resolve(save_to).map_err(|error| FieldError::new("save_to", error))?;
                Some((every, save_to))
            }
        };
        Ok(Self { volume, wish, last: Instant::now() })
    }

    pub(crate) fn save_if_due(
        &mut self,
        steps: u64,
        context: &JobContext<TrainSaved>,
        save: impl FnOnce(&Path) -> Result<Digest, NetworkError>,
    ) -> Result<(), Status> {
        let Some((every, to)) = self.wish else { return Ok(()) };
        let due = match every {
            SaveEvery::Seconds(seconds) => self.last.elapsed().as_secs() >= u64::from(seconds),
            SaveEvery::Steps(n) => steps.is_multiple_of(u64::from(n)),
        };
        if !due {
            return Ok(());
        }
        let path = self.volume.resolve(&format!("{to}.{steps}{TEMPORARY}")).map_err(|error| volume_status(&error))?;
        let digest = save(&path).map_err(status)?;
        let record = self.volume.record(&path, digest).map_err(|error| volume_status(&error))?;
        self.last = Instant::now();
        context.saved(TrainSaved { file: Some(file_to_wire(&record)), steps })
    }
}
