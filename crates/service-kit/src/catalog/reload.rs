//! The catalog in force, and how a change to its file takes effect.

use std::{path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Catalog, Error, Needs};

/// How often the file is read. Its content decides, not its time: a Kubernetes ConfigMap changes by a link.
const POLL: Duration = Duration::from_secs(1);

/// The catalog in force; clones share it.
#[derive(Debug, Clone)]
pub struct CatalogHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    current: ArcSwap<Catalog>,
    changed: watch::Sender<u64>,
}

impl CatalogHandle {
    /// A catalog that never changes.
    pub fn fixed(catalog: Catalog) -> Self {
        Self {
            shared: Arc::new(Shared {
                current: ArcSwap::from_pointee(catalog),
                changed: watch::Sender::new(0),
            }),
        }
    }

    /// Reads the file for the first time.
    ///
    /// # Errors
    /// When it cannot be read or is invalid.
    pub fn load(path: PathBuf, needs: Needs) -> Result<(Self, Reloader), Error> {
        let text = read(&path)?;
        let handle = Self::fixed(Catalog::parse(&text, needs, from_env)?);
        let reloader = Reloader {
            handle: handle.clone(),
            path,
            needs,
            text,
        };
        Ok((handle, reloader))
    }

    /// The catalog in force now.
    pub fn current(&self) -> Arc<Catalog> {
        self.shared.current.load_full()
    }

    /// Wakes at each change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// Puts another catalog in force.
    pub fn replace(&self, catalog: Catalog) {
        self.shared.current.store(Arc::new(catalog));
        self.shared.changed.send_modify(|version| *version += 1);
    }
}

/// Follows the file.
#[derive(Debug)]
pub struct Reloader {
    handle: CatalogHandle,
    path: PathBuf,
    needs: Needs,
    text: String,
}

impl Reloader {
    /// Puts each valid change in force until the token is cancelled; an invalid one is logged with its line, once.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut poll = tokio::time::interval(POLL);
        while stop.run_until_cancelled(poll.tick()).await.is_some() {
            self.reload().await;
        }
    }

    async fn reload(&mut self) {
        let path = self.path.clone();
        // An editor may be between removing and writing it: the old catalog stays in force, as it does for a file
        // that is gone for good.
        let Ok(Ok(text)) = tokio::task::spawn_blocking(move || read(&path)).await else {
            return;
        };
        if text == self.text {
            return;
        }
        match Catalog::parse(&text, self.needs, from_env) {
            Ok(catalog) => {
                info!(path = %self.path.display(), apps = catalog.apps().len(), "wxhub.toml changed: the new one is in force");
                self.handle.replace(catalog);
            }
            Err(error) => {
                warn!(path = %self.path.display(), "wxhub.toml changed but is refused, the old one stays in force: {error}");
            }
        }
        self.text = text;
    }
}

fn read(path: &PathBuf) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.clone(),
        source,
    })
}

fn from_env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDS: Needs = Needs {
        app_secrets: true,
        callbacks: false,
    };

    fn file(name: &str) -> String {
        format!(
            "[[apps]]\napp_id = \"wx0000000000000001\"\nname = \"{name}\"\nkind = \"mini_program\"\nsecret = \"s\"\n"
        )
    }

    #[tokio::test]
    async fn a_valid_change_takes_effect_and_an_invalid_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wxhub.toml");
        std::fs::write(&path, file("shop")).unwrap();
        let (handle, mut reloader) = CatalogHandle::load(path.clone(), NEEDS).unwrap();
        let mut changes = handle.changes();
        assert!(handle.current().app("shop").is_some());

        std::fs::write(&path, file("store")).unwrap();
        reloader.reload().await;
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        assert!(handle.current().app("store").is_some());

        std::fs::write(&path, file("No Name")).unwrap();
        reloader.reload().await;
        std::fs::remove_file(&path).unwrap();
        reloader.reload().await;
        assert!(!changes.has_changed().unwrap());
        assert!(handle.current().app("store").is_some());
    }
}
