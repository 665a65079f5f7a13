//! The gRPC side: who may call what, and the translation between wire and domain.

mod message;

use service_kit::{Scope, caller::Rules};

pub(crate) use self::message::PushRpc;

/// Health is told for these.
pub(crate) const NAMES: &[&str] = &["wxhub.push.v1.PushService"];

/// The scope of each RPC.
pub(crate) const RULES: Rules = &[
    ("/wxhub.push.v1.PushService/SendMessage", Scope::PushSend),
    ("/wxhub.push.v1.PushService/GetMessage", Scope::PushRead),
];
