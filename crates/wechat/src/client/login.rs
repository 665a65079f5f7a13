//! Mini program login.

use serde::Deserialize;

use super::{Call, Client, answer};
use crate::{AppId, AppSecret, Error, OpenId, SessionKey, UnionId};

/// Who logged in, and the key of the data that WeChat encrypts for that user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodeSession {
    /// The user within this mini program.
    pub open_id: OpenId,
    /// Replaces the user's former `session_key`.
    pub session_key: SessionKey,
    /// The user across the apps of one open-platform account, when the mini program is bound to
    /// one.
    pub union_id: Option<UnionId>,
}

#[derive(Deserialize)]
struct SessionAnswer {
    openid: OpenId,
    #[serde(deserialize_with = "answer::filled")]
    session_key: String,
    unionid: Option<String>,
}

impl Client {
    /// Exchanges a `wx.login` code, good for five minutes and one use (小程序登录凭证校验 code2Session).
    ///
    /// # Errors
    /// [`Error`]; 40029 and 40163 ask the user to log in again.
    pub async fn code_to_session(
        &self,
        app: &AppId,
        secret: &AppSecret,
        js_code: &str,
    ) -> Result<CodeSession, Error> {
        let answer: SessionAnswer = self
            .call(Call {
                endpoint: "/sns/jscode2session",
                app: Some(app),
                query: &[
                    ("appid", app.as_str()),
                    ("secret", secret.expose()),
                    ("js_code", js_code),
                    ("grant_type", "authorization_code"),
                ],
                body: None,
                secrets: &[secret.expose(), js_code],
            })
            .await?;
        Ok(CodeSession {
            open_id: answer.openid,
            session_key: SessionKey::new(answer.session_key),
            // Absent, null and "" all say that there is none.
            union_id: answer.unionid.and_then(|id| UnionId::try_from(id).ok()),
        })
    }
}
