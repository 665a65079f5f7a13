//! Where `wxhub dev` keeps its files.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use reqwest::Url;
use tempfile::TempDir;

use crate::world;

/// `wxhub.toml` and one database a service.
#[derive(Debug)]
pub(super) struct DataFolder {
    path: PathBuf,
    /// Removed at the end, where nobody asked for it to be kept.
    temporary: Option<TempDir>,
}

impl DataFolder {
    /// The named folder, made where it does not exist, or a temporary one.
    pub(super) fn open(named: Option<PathBuf>) -> anyhow::Result<Self> {
        let Some(path) = named else {
            let folder = tempfile::Builder::new().prefix("wxhub-dev-").tempdir();
            let folder = folder.context("a temporary folder cannot be made")?;
            return Ok(Self {
                path: folder.path().to_owned(),
                temporary: Some(folder),
            });
        };
        fs::create_dir_all(&path)
            .and_then(|()| std::path::absolute(&path))
            .map(|path| Self {
                path,
                temporary: None,
            })
            .with_context(|| format!("--data-dir {} cannot be used", path.display()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }

    /// Writes the development world's `wxhub.toml`, unless one is there from before: it may have been edited.
    pub(super) fn write_catalog(&self) -> anyhow::Result<PathBuf> {
        let path = self.path.join("wxhub.toml");
        let written = match fs::File::create_new(&path) {
            Ok(mut file) => file.write_all(world::WXHUB_TOML.as_bytes()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        };
        written.with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(path)
    }

    /// The URL of a service's SQLite file.
    pub(super) fn database(&self, service: &str) -> anyhow::Result<String> {
        let file = self.path.join(format!("{service}.sqlite"));
        let url = Url::from_file_path(&file);
        let url = url.map_err(|()| anyhow::anyhow!("{} is no path of a file", file.display()))?;
        Ok(format!("sqlite://{}", url.path()))
    }

    /// Removes what is not to be kept.
    pub(super) fn close(self) -> anyhow::Result<()> {
        self.temporary
            .map_or(Ok(()), TempDir::close)
            .with_context(|| format!("{} cannot be removed", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_folder_keeps_an_edited_catalog() {
        let parent = tempfile::tempdir().unwrap();
        let kept = parent.path().join("a new/folder");
        let folder = DataFolder::open(Some(kept.clone())).unwrap();
        let catalog = folder.write_catalog().unwrap();
        assert_eq!(fs::read_to_string(&catalog).unwrap(), world::WXHUB_TOML);
        fs::write(&catalog, "# mine").unwrap();
        folder.close().unwrap();

        let folder = DataFolder::open(Some(kept)).unwrap();
        folder.write_catalog().unwrap();
        assert_eq!(fs::read_to_string(&catalog).unwrap(), "# mine");
        assert!(
            folder
                .database("auth")
                .unwrap()
                .ends_with("/a%20new/folder/auth.sqlite")
        );
    }

    #[test]
    fn a_temporary_folder_is_removed() {
        let folder = DataFolder::open(None).unwrap();
        let path = folder.path().to_owned();
        folder.write_catalog().unwrap();
        folder.close().unwrap();
        assert!(!path.exists());
    }
}
