//! The files of a run. Each replaces an older one as a whole, so a run that is killed leaves what was there after its
//! last phase.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::GpuCheckReport;
use crate::error::GpuCheckError;

/// The files of a run, in one folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReportFiles {
    folder: PathBuf,
}

impl ReportFiles {
    /// Everything, as JSON.
    pub const JSON: &str = "gpu-check.json";
    /// A line for each figure.
    pub const CSV: &str = "gpu-check.csv";
    /// One page, without scripts or files beside it.
    pub const PAGE: &str = "gpu-check.html";
    /// The proposed constants of the routes, as TOML.
    pub const ROUTES: &str = "gpu-check-routes.toml";

    /// In this folder, which is made if it is absent.
    ///
    /// # Errors
    ///
    /// A folder that cannot be made.
    pub fn in_folder(folder: &Path) -> Result<ReportFiles, GpuCheckError> {
        fs::create_dir_all(folder).map_err(|error| file(folder, &error))?;
        Ok(ReportFiles {
            folder: folder.to_owned(),
        })
    }

    /// The path of a file.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes all files.
    ///
    /// # Errors
    ///
    /// A file that cannot be written.
    pub fn write(&self, report: &GpuCheckReport) -> Result<(), GpuCheckError> {
        let json = serde_json::to_string_pretty(report);
        let json = json.map_err(|error| GpuCheckError::File {
            path: self.path(ReportFiles::JSON),
            reason: error.to_string(),
        })?;
        self.replace(ReportFiles::JSON, &json)?;
        self.replace(ReportFiles::CSV, &report.csv())?;
        self.replace(ReportFiles::PAGE, &report.page())?;
        self.replace(ReportFiles::ROUTES, &report.route_table()?)
    }

    fn replace(&self, name: &str, text: &str) -> Result<(), GpuCheckError> {
        let path = self.path(name);
        let new = self.path(&format!("{name}.new"));
        fs::write(&new, text).map_err(|error| file(&new, &error))?;
        fs::rename(&new, &path).map_err(|error| file(&path, &error))
    }
}

fn file(path: &Path, error: &std::io::Error) -> GpuCheckError {
    GpuCheckError::File {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}
