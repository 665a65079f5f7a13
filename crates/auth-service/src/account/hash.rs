//! Hashing passwords: argon2id with OWASP's parameters, a few at a time.

use std::sync::Arc;

use argon2::{Argon2, PasswordHasher as _, PasswordVerifier as _};
use tokio::sync::Semaphore;

use super::{Password, Refusal};
use crate::error::Error;

/// More passwords than this do not wait to be hashed: whoever comes then is asked to come again.
const QUEUE: usize = 64;

/// Verified against where there is no account, so that an unknown name takes as long as a known one. No password has
/// it: nobody knows one that hashes to zeros.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Hashes a few passwords at once: each takes a processor, and 19 MiB.
#[derive(Debug, Clone)]
pub(super) struct Hasher {
    queue: Arc<Semaphore>,
    processors: Arc<Semaphore>,
}

impl Hasher {
    pub(super) fn new() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            queue: Arc::new(Semaphore::new(QUEUE)),
            processors: Arc::new(Semaphore::new(at_once(processors))),
        }
    }

    /// The password's hash, salted, as a PHC string.
    pub(super) async fn hash(&self, password: Password) -> Result<String, Error> {
        let hashed = self.run(move || argon2().hash_password(password.bytes()));
        match hashed.await? {
            Ok(hash) => Ok(hash.to_string()),
            Err(_) => Err(Error::Stored("password")),
        }
    }

    /// Whether the password has this hash; without a hash it has not, which takes as long to find out.
    pub(super) async fn matches(
        &self,
        password: Password,
        hash: Option<String>,
    ) -> Result<bool, Error> {
        self.run(move || {
            let (hash, known) = match &hash {
                Some(hash) => (hash.as_str(), true),
                None => (NOBODY, false),
            };
            let matches = argon2().verify_password(password.bytes(), hash).is_ok();
            matches && known
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let Ok(_place) = self.queue.try_acquire() else {
            return Err(Refusal::Busy.into());
        };
        // Neither semaphore is ever closed.
        let processor = Arc::clone(&self.processors).acquire_owned().await.ok();
        let worked = tokio::task::spawn_blocking(move || {
            let outcome = work();
            // It is taken until the work is done, whether or not somebody still waits for it.
            drop(processor);
            outcome
        });
        Ok(worked.await?)
    }
}

/// How many are hashed at once: the other processors are left to whoever verifies sessions, however many try passwords.
fn at_once(processors: usize) -> usize {
    (processors / 2).max(1)
}

/// Argon2id, version 19, m = 19 MiB, t = 2, p = 1: the first of OWASP's choices (Password Storage Cheat Sheet).
fn argon2() -> Argon2<'static> {
    Argon2::default()
}

#[cfg(test)]
mod tests {
    use argon2::password_hash::phc::PasswordHash;

    use super::*;

    fn password(text: &str) -> Password {
        Password::shown(text)
    }

    #[tokio::test]
    async fn a_password_matches_its_own_hash_only() {
        let hasher = Hasher::new();
        let hash = hasher.hash(password("correct horse")).await.unwrap();
        assert!(
            hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{hash}"
        );
        let again = hasher.hash(password("correct horse")).await.unwrap();
        assert_ne!(hash, again, "each has a salt of its own");
        let matches = async |text, hash| hasher.matches(password(text), hash).await.unwrap();
        assert!(matches("correct horse", Some(hash.clone())).await);
        assert!(!matches("correct h0rse", Some(hash.clone())).await);
        assert!(!matches("", Some(hash)).await);
        assert!(!matches("correct horse", None).await);
    }

    #[tokio::test]
    async fn an_unknown_name_costs_what_a_known_one_costs() {
        let hash = Hasher::new().hash(password("correct horse")).await.unwrap();
        let (known, nobody) = (PasswordHash::new(&hash).unwrap(), PasswordHash::new(NOBODY));
        let nobody = nobody.unwrap();
        assert_eq!(nobody.algorithm, known.algorithm);
        assert_eq!(nobody.version, known.version);
        assert_eq!(nobody.params, known.params);
        let length = |hash: &PasswordHash| hash.hash.as_ref().unwrap().len();
        assert_eq!(length(&nobody), length(&known));
    }

    #[test]
    fn half_of_the_processors_are_left_where_there_are_two() {
        for (processors, hashing) in [(1, 1), (2, 1), (3, 1), (4, 2), (64, 32)] {
            assert_eq!(at_once(processors), hashing, "of {processors}");
        }
    }

    #[tokio::test]
    async fn a_full_queue_refuses_rather_than_grows() {
        let hasher = Hasher::new();
        let _others = hasher.queue.acquire_many(QUEUE as u32).await.unwrap();
        let refused = hasher.hash(password("correct horse")).await.unwrap_err();
        assert!(matches!(refused, Error::Account(Refusal::Busy)));
    }
}
