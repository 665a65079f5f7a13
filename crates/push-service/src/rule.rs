//! What a push is answered with. One built-in rule, until rules are configured: RuleService replaces this module's
//! inside, not its callers.

use service_kit::{App, AppKind};
use wechat::callback::{Inbound, Reply};

/// The answer to a push: a text to an official account is told back, everything else is taken note of. Mini programs
/// have no passive replies.
pub(crate) fn reply(app: &App, push: &Inbound) -> Reply {
    match (&app.kind, push.msg_type.as_str(), &push.content) {
        (AppKind::OfficialAccount, "text", Some(content)) => Reply::Text {
            content: format!("收到：{content}"),
        },
        _ => Reply::Success,
    }
}
