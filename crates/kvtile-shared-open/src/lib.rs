//! Opens the stores of shared tiers by their URLs: one name for every store that kvtile has.
//!
//! | text | store |
//! | --- | --- |
//! | `/mnt/kv`, `file:///mnt/kv` | a folder, also one on a network file system |
//! | `s3://bucket/prefix?region=…`, `gs://…`, `az://…` | a bucket |
//! | `redis://host:6379/0`, `unix:///run/redis.sock` | Redis or Valkey |

#![forbid(unsafe_code)]

use std::{path::PathBuf, sync::Arc};

use kvtile_shared::{
    folder::{FolderStore, FolderStoreSettings},
    store::{Deadline, SharedStore, SharedStoreError, StoreOperation},
};
use kvtile_shared_object::{ObjectBucket, ObjectStoreUrl};
use kvtile_shared_redis::{RedisStore, RedisUrl};
use url::Url;

/// The schemes of all stores.
pub const SCHEMES: &[&str] = &["file", "s3", "gs", "az", "redis", "unix"];

/// Opens the store that `text` names: a URL, or the path of a folder.
///
/// # Errors
/// A URL that no store has, with options that it does not have, or with values that they cannot
/// have; a store that cannot be opened by the deadline.
pub fn open_store(text: &str, by: Deadline) -> Result<Arc<dyn SharedStore>, SharedStoreError> {
    let refused = |what: String| SharedStoreError::configuration(StoreOperation::Open, what);
    let Some((scheme, _)) = text.split_once("://") else {
        return folder(PathBuf::from(text));
    };
    match scheme {
        "file" => folder(file_path(text).map_err(refused)?),
        "redis" | "rediss" | "unix" => {
            let url: RedisUrl = text.parse().map_err(|error| refused(format!("{error}")))?;
            let store = RedisStore::open(&url, by)?;
            Ok(Arc::new(store))
        }
        "s3" | "gs" | "az" => {
            let url: ObjectStoreUrl = text.parse().map_err(|error| refused(format!("{error}")))?;
            Ok(Arc::new(ObjectBucket::open(&url, by)?))
        }
        other => Err(refused(format!(
            "no store has the scheme {other:?}; write the path of a folder, or a URL with one of {}",
            SCHEMES.join(", ")
        ))),
    }
}

/// The folder that `text` names; `None` for other stores, and for texts that [`open_store`] refuses.
#[must_use]
pub fn folder_of(text: &str) -> Option<PathBuf> {
    match text.split_once("://") {
        None => Some(PathBuf::from(text)),
        Some(("file", _)) => file_path(text).ok(),
        Some(_) => None,
    }
}

fn folder(path: PathBuf) -> Result<Arc<dyn SharedStore>, SharedStoreError> {
    if path.as_os_str().is_empty() {
        let what = "the path of the folder is empty";
        return Err(SharedStoreError::configuration(StoreOperation::Open, what));
    }
    let store = FolderStore::open(path, FolderStoreSettings::default())?;
    Ok(Arc::new(store))
}

fn file_path(text: &str) -> Result<PathBuf, String> {
    let url = Url::parse(text).map_err(|error| format!("{text:?} is no URL: {error}"))?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err("the URL of a folder has no options; write file:///path".to_owned());
    }
    url.to_file_path()
        .map_err(|()| "the URL of a folder is file:///path, without a host".to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn refusal(text: &str) -> String {
        let by = Deadline::within(Duration::from_secs(5));
        open_store(text, by).unwrap_err().to_string()
    }

    #[test]
    fn folders_open_by_path_and_by_url() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k v");
        let by = Deadline::within(Duration::from_secs(5));
        let url = Url::from_file_path(&path).unwrap();
        for text in [path.display().to_string(), url.to_string()] {
            let store = open_store(&text, by).unwrap();
            assert_eq!(store.name(), path.display().to_string());
            assert_eq!(folder_of(&text), Some(path.clone()));
        }
        assert!(path.is_dir());
    }

    #[test]
    fn other_texts_are_refused_by_name() {
        for (text, named) in [
            ("", "empty"),
            ("ftp://host/kv", "\"ftp\""),
            ("file://host/kv", "without a host"),
            ("file:///kv?syncs=no", "no options"),
            ("s3://bucket?colour=red", "colour"),
            ("redis://host?colour=red", "colour"),
            ("rediss://host", "rediss"),
        ] {
            let text = refusal(text);
            assert!(text.contains(named), "{text}");
        }
        assert_eq!(folder_of("s3://bucket"), None);
        // The text of a file system, not of a URL.
        let text = refusal("/proc/no/such");
        assert!(text.contains("/proc/no/such"), "{text}");
    }
}
