//! The catalog in force, and how a change to its file takes effect.

use std::{path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use tokio::{sync::watch, time::MissedTickBehavior};
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
        let handle = Self::fixed(Catalog::parse_file(&path, &text, needs, from_env)?);
        let reloader = Reloader {
            handle: handle.clone(),
            path,
            needs,
            seen: Ok(handle.current().fingerprint),
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

/// Follows the file, and the secret files that it names.
#[derive(Debug)]
pub struct Reloader {
    handle: CatalogHandle,
    path: PathBuf,
    needs: Needs,
    /// What the last poll found: a catalog's fingerprint, or what was wrong.
    seen: Result<[u8; 32], String>,
}

impl Reloader {
    /// Puts each valid change in force until the token is cancelled; an invalid one is logged with its line, once, and
    /// tried again: a secret file may come later than the text that names it.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(poll.tick()).await.is_some() {
            self.poll().await;
        }
    }

    async fn poll(&mut self) {
        let (path, needs) = (self.path.clone(), self.needs);
        let load = move || Catalog::parse_file(&path, &read(&path)?, needs, from_env);
        let Ok(loaded) = tokio::task::spawn_blocking(load).await else {
            return;
        };
        let path = self.path.display();
        let seen = match &loaded {
            Ok(catalog) => Ok(catalog.fingerprint),
            Err(error) => Err(error.to_string()),
        };
        // Whoever writes the file may be half way through: what counts is what two polls find.
        let settled = seen == self.seen;
        if !settled {
            if let Err(error) = &seen {
                warn!(%path, "wxhub.toml is refused, the catalog before it stays in force: {error}");
            }
            self.seen = seen;
            return;
        }
        if let Ok(catalog) = loaded
            && catalog.fingerprint != self.handle.current().fingerprint
        {
            info!(%path, apps = catalog.apps().len(), "wxhub.toml changed and is in force");
            self.handle.replace(catalog);
        }
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

    fn file(name: &str, secret: &str) -> String {
        format!(
            "[[apps]]\napp_id = \"wx0000000000000001\"\nname = \"{name}\"\nkind = \"mini_program\"\n{secret}\n"
        )
    }

    struct Fixture {
        folder: tempfile::TempDir,
        handle: CatalogHandle,
        reloader: Reloader,
    }

    impl Fixture {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("wxhub.toml");
            std::fs::write(&path, file("shop", "secret = \"s\"")).unwrap();
            let (handle, reloader) = CatalogHandle::load(path, NEEDS).unwrap();
            Self {
                folder,
                handle,
                reloader,
            }
        }

        fn write(&self, name: &str, text: &str) {
            std::fs::write(self.folder.path().join(name), text).unwrap();
        }

        fn secret_file(&self) -> String {
            let path = self.folder.path().join("secret");
            format!("secret_file = \"{}\"", path.display())
        }

        fn secret(&self, app: &str) -> Option<String> {
            let catalog = self.handle.current();
            let secret = catalog.app(app)?.secret.as_ref()?;
            Some(secret.expose().to_owned())
        }
    }

    #[tokio::test]
    async fn a_change_takes_effect_once_two_polls_agree() {
        let mut fixture = Fixture::new();
        let mut changes = fixture.handle.changes();
        fixture.write("wxhub.toml", &file("store", "secret = \"s\""));
        fixture.reloader.poll().await;
        assert!(fixture.secret("store").is_none());
        fixture.reloader.poll().await;
        assert!(fixture.secret("store").is_some());
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        fixture.reloader.poll().await;
        assert!(!changes.has_changed().unwrap());
    }

    #[tokio::test]
    async fn an_invalid_or_truncated_or_missing_file_changes_nothing() {
        let mut fixture = Fixture::new();
        let changes = fixture.handle.changes();
        for text in [&*file("No Name", "secret = \"s\""), "", "[[apps]]"] {
            fixture.write("wxhub.toml", text);
            fixture.reloader.poll().await;
            fixture.reloader.poll().await;
        }
        std::fs::remove_file(fixture.folder.path().join("wxhub.toml")).unwrap();
        fixture.reloader.poll().await;
        fixture.reloader.poll().await;
        assert!(!changes.has_changed().unwrap());
        assert!(fixture.secret("shop").is_some());
    }

    #[tokio::test]
    async fn a_secret_file_may_come_later_and_its_rotation_takes_effect() {
        let mut fixture = Fixture::new();
        fixture.write("wxhub.toml", &file("store", &fixture.secret_file()));
        fixture.reloader.poll().await;
        fixture.reloader.poll().await;
        assert_eq!(fixture.secret("store"), None);
        for secret in ["first", "second"] {
            fixture.write("secret", secret);
            fixture.reloader.poll().await;
            fixture.reloader.poll().await;
            assert_eq!(fixture.secret("store").as_deref(), Some(secret));
        }
    }
}
