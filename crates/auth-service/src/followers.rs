//! Places for browsers that follow a bind link: each costs a connection, and a read from Redis a second.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::account::AccountName;

/// So many follow at once …
const ALL: usize = 1_000;
/// … and so many of one account: nobody takes every place.
const OF_ACCOUNT: usize = 8;

/// Who follows; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Followers(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    of_account: HashMap<AccountName, usize>,
}

impl Followers {
    /// A place for an account, if there is one.
    pub(crate) fn admit(&self, account: &AccountName) -> Option<Place> {
        let mut taken = self.lock();
        let of_account = taken.of_account.get(account).copied().unwrap_or_default();
        if taken.all >= ALL || of_account >= OF_ACCOUNT {
            return None;
        }
        taken.all += 1;
        taken.of_account.insert(account.clone(), of_account + 1);
        Some(Place {
            followers: self.clone(),
            account: account.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A follower's place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    followers: Followers,
    account: AccountName,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.followers.lock();
        taken.all -= 1;
        if let Some(of_account) = taken.of_account.get_mut(&self.account) {
            *of_account -= 1;
            if *of_account == 0 {
                taken.of_account.remove(&self.account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_and_given_back() {
        let followers = Followers::default();
        let name = |n: usize| format!("account {n}").parse().unwrap();
        let mut places: Vec<_> = (0..ALL)
            .map_while(|n| followers.admit(&name(n / OF_ACCOUNT)))
            .collect();
        assert_eq!(places.len(), ALL);
        assert!(followers.admit(&name(ALL)).is_none());
        places.pop();
        assert!(followers.admit(&name(0)).is_none());
        assert!(followers.admit(&name(ALL)).is_some());
        drop(places);
        assert!(followers.lock().of_account.is_empty());
        assert_eq!(followers.lock().all, 0);
    }
}
