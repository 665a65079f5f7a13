//! How a Rust program uses wxhub's access tokens: cached, watched, reported when dead
