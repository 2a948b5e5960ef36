//! Where the parts of a model are, and how one of them is read.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kvtile_blocks::events::{TierId, TierKind};
use kvtile_layout::Shard;

use super::PartsSettings;
use crate::{
    disk::{DiskFollower, DiskSettings, PartFolderName},
    error::TierError,
    medium::FolderMedium,
    tier::{Tier, TierContext},
};

/// The name of the tier in its cache.
const NAME: &str = "parts";

/// A place with the parts of a model, which other ranks write. Calls may wait for a disk or a network; the tier makes
/// them when it is opened and on its own thread.
pub trait PartSource: fmt::Debug + Send + Sync {
    /// The name of the tier that reads these parts.
    ///
    /// # Errors
    /// A name that a tier cannot have.
    fn tier(&self) -> Result<TierId, TierError>;

    /// What the place is, for messages.
    fn place(&self) -> String;

    /// The parts that are there now, as far as their names tell. One that is named may be missing, or of another model:
    /// opening it decides.
    ///
    /// # Errors
    /// A place that cannot be read.
    fn list(&self) -> Result<Vec<PartFolderName>, TierError>;

    /// The age of a list at which a refresh makes a new one.
    fn list_after(&self) -> Duration;

    /// The age of the index at which a lookup starts a refresh.
    fn refresh_after(&self) -> Duration;

    /// Whether a query needs the keys of its blocks. Otherwise one query brings a part's tier up to all its blocks.
    fn needs_keys(&self) -> bool;

    /// A tier that reads the part, whose blocks are those of the only group of `context`. It appends each change of
    /// them to the log of `context`.
    ///
    /// # Errors
    /// A part of another identity, page size or order.
    fn open(
        &self,
        part: &PartFolderName,
        context: &TierContext,
    ) -> Result<Arc<dyn Tier>, TierError>;
}

/// The parts of a model's folder on a local disk.
#[derive(Debug)]
pub struct FolderParts {
    folder: PathBuf,
    /// The whole model, whose part is the folder itself.
    whole: PartFolderName,
    refresh_after: Duration,
}

impl FolderParts {
    /// The parts in `folder` of the model of which `own` is a shard. `refresh_after` is the age of an index at which a
    /// lookup starts a refresh.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>, own: &Shard, refresh_after: Duration) -> FolderParts {
        FolderParts {
            folder: folder.into(),
            whole: PartFolderName::of(&Shard::whole(own.total_layers, own.total_heads)),
            refresh_after,
        }
    }
}

impl PartSource for FolderParts {
    fn tier(&self) -> Result<TierId, TierError> {
        Ok(TierId::new(TierKind::Disk, NAME)?)
    }

    fn place(&self) -> String {
        self.folder.display().to_string()
    }

    fn list(&self) -> Result<Vec<PartFolderName>, TierError> {
        let names = folders(&self.folder)?;
        let named = names.iter().filter_map(|name| PartFolderName::parse(name));
        let apart = named.filter(|part| *part != self.whole);
        Ok(std::iter::once(self.whole).chain(apart).collect())
    }

    /// A listing of a local folder costs little.
    fn list_after(&self) -> Duration {
        Duration::ZERO
    }

    fn refresh_after(&self) -> Duration {
        self.refresh_after
    }

    fn needs_keys(&self) -> bool {
        false
    }

    fn open(
        &self,
        part: &PartFolderName,
        context: &TierContext,
    ) -> Result<Arc<dyn Tier>, TierError> {
        let folder = match *part == self.whole {
            true => self.folder.clone(),
            false => self.folder.join(part.to_string()),
        };
        let settings = DiskSettings::new(folder, 0)
            .name(NAME.to_owned())
            .refresh_after(self.refresh_after);
        Ok(Arc::new(DiskFollower::open(&settings, context)?))
    }
}

impl PartsSettings {
    /// The folder that a cache with the part `own` writes: `folder` itself if the part is the whole
    /// model, and else the folder of the part in it.
    #[must_use]
    pub fn own_folder(folder: &Path, shard: &Shard) -> PathBuf {
        match is_whole(shard) {
            true => folder.to_owned(),
            false => folder.join(PartFolderName::of(shard).to_string()),
        }
    }

    /// Whether `folder` has folders of parts.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn has_parts(folder: &Path) -> Result<bool, TierError> {
        let names = folders(folder)?;
        Ok(names
            .iter()
            .any(|name| PartFolderName::parse(name).is_some()))
    }
}

/// Whether a shard is the whole model, and the first copy of it.
fn is_whole(shard: &Shard) -> bool {
    *shard == Shard::whole(shard.total_layers, shard.total_heads)
}

/// The names of the folders in `folder`; none if it does not exist.
fn folders(folder: &Path) -> Result<Vec<String>, TierError> {
    let medium = FolderMedium::new(folder);
    let names = medium.folders();
    names.map_err(|error| TierError::file("list", folder.display().to_string(), error))
}
