//! 客服消息: free messages to a user who did something a short while ago.

use serde_json::Value;

use super::{MessageKind, Sent};
use crate::{account::Account, clock::Moment, config::Kind, error::ApiError};

/// The longest text, in bytes of UTF-8.
const TEXT_LIMIT: usize = 2048;

pub(super) fn send(account: &mut Account, body: Value, now: Moment) -> Result<Sent, ApiError> {
    let open_id = body
        .get("touser")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    account.user(&open_id).ok_or(ApiError::INVALID_OPENID)?;
    let content = content(account.config.kind, &body)?;
    let is_official = account.config.kind == Kind::OfficialAccount;
    let user = account.user_mut(&open_id).ok_or(ApiError::INVALID_OPENID)?;
    if is_official && !user.follows {
        return Err(ApiError::WINDOW_CLOSED);
    }
    user.windows.spend(now)?;
    user.typing.message(now);
    Ok(Sent::new(
        account,
        &open_id,
        MessageKind::Customer,
        content,
        body,
        None,
        now,
    ))
}

/// What the user reads, once the message has the parts that its `msgtype` needs.
fn content(kind: Kind, body: &Value) -> Result<String, ApiError> {
    let msg_type = body
        .get("msgtype")
        .and_then(Value::as_str)
        .ok_or(ApiError::INVALID_MESSAGE_TYPE)?;
    let permitted = match msg_type {
        "text" | "image" | "miniprogrampage" => true,
        "voice" | "video" | "music" | "news" | "mpnews" | "mpnewsarticle" | "msgmenu"
        | "wxcard" => kind == Kind::OfficialAccount,
        "link" => kind == Kind::MiniProgram,
        _ => return Err(ApiError::INVALID_MESSAGE_TYPE),
    };
    if !permitted {
        return Err(ApiError::MESSAGE_TYPE_FORBIDDEN);
    }
    let part = body
        .get(msg_type)
        .filter(|part| part.is_object())
        .ok_or(ApiError::DATA_FORMAT)?;
    let text = |field: &str| part.get(field).and_then(Value::as_str).unwrap_or_default();
    match msg_type {
        "text" => match text("content") {
            "" => Err(ApiError::EMPTY_CONTENT),
            content if content.len() > TEXT_LIMIT => Err(ApiError::CONTENT_SIZE),
            content => Ok(content.to_owned()),
        },
        // Nothing can be uploaded here, so every media_id is one that does not exist.
        "image" | "voice" | "video" | "music" | "mpnews" | "miniprogrampage" => {
            Err(ApiError::INVALID_MEDIA_ID)
        }
        "news" => match part
            .get("articles")
            .and_then(Value::as_array)
            .map(Vec::as_slice)
        {
            Some([article]) => Ok(article
                .get("title")
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()),
            Some([_, ..]) => Err(ApiError::ARTICLE_COUNT),
            _ => Err(ApiError::EMPTY_CONTENT),
        },
        "msgmenu" => Ok(text("head_content").to_owned()),
        "link" => Ok(text("title").to_owned()),
        _ => Ok(format!("[{msg_type}]")),
    }
}
