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
    let content = content(account, &body)?;
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
fn content(account: &Account, body: &Value) -> Result<String, ApiError> {
    let kind = account.config.kind;
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
    let needs = |fields: &[&str]| has(part, fields);
    let shows = |media: &[&str]| {
        let known = |field: &&str| account.media_ids.get(text(field)).is_some();
        let known = media.iter().all(known);
        known.then_some(()).ok_or(ApiError::INVALID_MEDIA_ID)
    };
    match msg_type {
        "text" => match text("content") {
            "" => return Err(ApiError::EMPTY_CONTENT),
            content if content.len() > TEXT_LIMIT => return Err(ApiError::CONTENT_SIZE),
            content => return Ok(content.to_owned()),
        },
        "video" => shows(&["media_id", "thumb_media_id"])?,
        "music" => {
            needs(&["title", "description", "musicurl"])?;
            shows(&["thumb_media_id"])?;
        }
        "news" => match list(part, "articles") {
            [article] => {
                has(article, &["title"])?;
                return Ok(title(article));
            }
            [_, ..] => return Err(ApiError::ARTICLE_COUNT),
            [] => return Err(ApiError::EMPTY_CONTENT),
        },
        "mpnewsarticle" => needs(&["article_id"])?,
        "msgmenu" => {
            let items = list(part, "list");
            if items.is_empty() {
                return Err(ApiError::DATA_FORMAT);
            }
            for item in items {
                has(item, &["id", "content"])?;
            }
            return Ok(text("head_content").to_owned());
        }
        "wxcard" => needs(&["card_id"])?,
        "miniprogrampage" => {
            needs(&["title", "appid", "pagepath"])?;
            shows(&["thumb_media_id"])?;
        }
        "link" => needs(&["title"])?,
        _ => shows(&["media_id"])?,
    }
    Ok(match title(part).as_str() {
        "" => format!("[{msg_type}]"),
        title => title.to_owned(),
    })
}

/// Texts that a message of its kind has, none of them empty.
fn has(part: &Value, fields: &[&str]) -> Result<(), ApiError> {
    let filled = |field: &&str| {
        let text = part.get(field).and_then(Value::as_str);
        text.is_some_and(|text| !text.is_empty())
    };
    let whole = fields.iter().all(filled);
    whole.then_some(()).ok_or(ApiError::DATA_FORMAT)
}

fn list<'a>(part: &'a Value, field: &str) -> &'a [Value] {
    let items = part.get(field).and_then(Value::as_array);
    items.map(Vec::as_slice).unwrap_or_default()
}

fn title(part: &Value) -> String {
    let title = part.get("title").and_then(Value::as_str);
    title.unwrap_or_default().to_owned()
}
