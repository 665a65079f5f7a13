//! The gRPC side: who may call what, and the translation between wire and domain.

mod message;

use service_kit::{Scope, caller::Rules};

pub(crate) use self::message::PushRpc;

/// Health is told for these.
pub(crate) const NAMES: &[&str] = &["wxhub.push.v1.PushService"];

/// The scope of each RPC.
pub(crate) const RULES: Rules = &[
    ("/wxhub.push.v1.PushService/SendMessage", Scope::PushSend),
    (
        "/wxhub.push.v1.PushService/BatchSendMessages",
        Scope::PushSend,
    ),
    ("/wxhub.push.v1.PushService/GetMessage", Scope::PushRead),
    ("/wxhub.push.v1.PushService/CancelMessage", Scope::PushSend),
    ("/wxhub.push.v1.PushService/RetryMessage", Scope::PushSend),
];

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_rpc_has_a_scope_and_every_rule_an_rpc() {
        let set = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut rpcs = Vec::new();
        for file in set
            .file
            .iter()
            .filter(|file| file.package() == "wxhub.push.v1")
        {
            for service in &file.service {
                for method in &service.method {
                    rpcs.push(format!(
                        "/{}.{}/{}",
                        file.package(),
                        service.name(),
                        method.name()
                    ));
                }
                assert!(NAMES.contains(&format!("{}.{}", file.package(), service.name()).as_str()));
            }
        }
        let mut ruled: Vec<_> = RULES.iter().map(|(path, _)| (*path).to_owned()).collect();
        rpcs.sort();
        ruled.sort();
        assert_eq!(ruled, rpcs);
    }
}
