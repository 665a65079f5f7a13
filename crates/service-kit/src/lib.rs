#![doc = include_str!("../README.md")]

pub mod caller;
pub mod catalog;
pub mod cli;
pub mod client;
pub mod clock;
pub mod grpc;
pub mod http;
pub mod ops;
pub mod run;
pub mod seal;
pub mod settings;
pub mod status;
pub mod storage;
pub mod telemetry;
pub mod trace;

pub use caller::{Caller, Scope};
pub use catalog::{App, AppKind, Catalog, CatalogHandle};
pub use clock::Clock;
pub use seal::Sealer;
pub use settings::{Problems, Settings};
