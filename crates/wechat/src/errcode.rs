//! WeChat's global return codes and what a client does about each.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A return code of the WeChat API (全局返回码). Hundreds exist, many of them undocumented: any number
/// is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ErrCode(pub i64);

macro_rules! codes {
    ($($name:ident = $code:literal, $doc:literal;)*) => {
        impl ErrCode {
            $(#[doc = $doc] pub const $name: Self = Self($code);)*
        }
    };
}

codes! {
    SYSTEM_ERROR = -1, "WeChat is busy; whether the call took effect is unknown.";
    OK = 0, "Success.";
    INVALID_CREDENTIAL = 40001, "The `access_token` is dead or replaced; of a call that takes the AppSecret, the secret is wrong.";
    INVALID_GRANT_TYPE = 40002, "Wrong `grant_type`.";
    INVALID_OPEN_ID = 40003, "Not an openid of this account, or not a follower.";
    INVALID_MEDIA_ID = 40007, "Unknown media, or expired after three days.";
    INVALID_MESSAGE_TYPE = 40008, "Unknown `msgtype`.";
    INVALID_APP_ID = 40013, "Unknown appid.";
    INVALID_ACCESS_TOKEN = 40014, "The `access_token` is malformed or of another account.";
    INVALID_CODE = 40029, "The login code is expired, forged or of another appid.";
    INVALID_REFRESH_TOKEN = 40030, "The OAuth `refresh_token` is no good.";
    INVALID_CHARSET = 40033, "The body escapes characters as `\\uXXXX`.";
    INVALID_TEMPLATE_ID_SIZE = 40036, "The template id has a wrong length.";
    INVALID_TEMPLATE_ID = 40037, "Not a template of this account.";
    INVALID_ARGS = 40097, "Invalid arguments.";
    INVALID_APP_SECRET = 40125, "The AppSecret is wrong.";
    CODE_USED = 40163, "The login code was used before.";
    IP_NOT_ALLOWED = 40164, "The caller's address is not in the account's allow-list.";
    INVALID_PAGE_PATH = 40165, "The mini program's page path is wrong.";
    CODE_BLOCKED = 40226, "The user is judged high risk; login is refused.";
    APP_SECRET_FROZEN = 40243, "The AppSecret is frozen in the console.";
    ACCESS_TOKEN_MISSING = 41001, "The call carries no `access_token`.";
    APP_ID_MISSING = 41002, "The call carries no appid.";
    APP_SECRET_MISSING = 41004, "The call carries no secret.";
    CODE_MISSING = 41008, "The call carries no code.";
    OPEN_ID_MISSING = 41009, "The call carries no openid.";
    INVALID_FORM_ID = 41028, "The `form_id` is wrong or expired.";
    FORM_ID_USED = 41029, "The `form_id` is used up.";
    INVALID_PAGE = 41030, "The page is not in the released mini program.";
    ACCESS_TOKEN_EXPIRED = 42001, "The `access_token` is past its time.";
    REFRESH_TOKEN_EXPIRED = 42002, "The OAuth `refresh_token` is past its time.";
    CODE_EXPIRED = 42003, "The OAuth code is past its time.";
    GRANT_REVOKED = 42007, "The user changed the password: both OAuth tokens are dead.";
    POST_REQUIRED = 43002, "The interface takes POST alone.";
    NOT_A_FOLLOWER = 43004, "The recipient does not follow the account.";
    BLACKLISTED = 43019, "The recipient is on the account's blacklist.";
    REFUSED_BY_USER = 43101, "The user did not subscribe, or the allowance is used up.";
    SUBSCRIBE_BANNED = 43107, "The subscribe ability, or this template, is banned.";
    CONCURRENT_SENDS = 43108, "Concurrent sends to one user.";
    TEMPLATE_RESTRICTED = 43116, "The template is restricted for abuse.";
    EMPTY_POST_DATA = 44002, "The body is empty.";
    EMPTY_CONTENT = 44004, "The text is empty.";
    CONTENT_TOO_LONG = 45002, "The content is too long.";
    DAILY_QUOTA = 45009, "The interface's daily quota is used up.";
    MINUTE_QUOTA = 45011, "Too many calls this minute.";
    OUT_OF_WINDOW = 45015, "The customer-service window is closed, or the user unfollowed.";
    OUT_OF_RESPONSES = 45047, "The customer-service allowance is used up until the user acts again.";
    INVALID_COMMAND = 45072, "The typing command is none.";
    NO_RECENT_EXCHANGE = 45080, "No message was exchanged with the user within 30 seconds.";
    ALREADY_TYPING = 45081, "The typing status is already shown.";
    KEYWORD_BLACKLISTED = 45168, "The text holds a forbidden word.";
    DATA_FORMAT = 47001, "The body is no valid JSON.";
    INVALID_ARGUMENT = 47003, "A template value breaks its type's rule.";
    API_UNAUTHORIZED = 48001, "The interface is not granted to this account.";
    BLOCKED_BY_USER = 48002, "The user refuses messages.";
    API_FORBIDDEN = 48004, "The interface is banned for this account.";
    MESSAGE_TYPE_UNAUTHORIZED = 48008, "The account may not send this type.";
    USER_LIMITED = 50002, "The account is punished, frozen or closed.";
    TOKEN_FORBIDDEN = 50004, "The token interface is forbidden to this account.";
    UNSUBSCRIBED = 50005, "The user unfollowed.";
    ACCOUNT_FROZEN = 50007, "The account is frozen.";
    IP_NOT_REGISTERED = 61004, "The caller's address is not in the account's allow-list.";
    MINOR_PROTECTED = 70000, "Blocked to protect a minor.";
    SESSION_KEY_GONE = 87007, "The `session_key` does not exist or is expired.";
    INVALID_SIGNATURE_METHOD = 87008, "The `sig_method` is none that WeChat knows.";
    INVALID_SESSION_SIGNATURE = 87009, "The signature does not fit: the `session_key` is no longer valid.";
    IP_AWAITS_CONFIRMATION = 89501, "The address awaits an administrator's confirmation.";
    CALL_AWAITS_CONFIRMATION = 89503, "An administrator must confirm this call.";
    IP_REFUSED_FOR_A_DAY = 89506, "An administrator refused twice: the address is blocked for 24 hours.";
    IP_REFUSED_FOR_AN_HOUR = 89507, "An administrator refused: the address is blocked for an hour.";
}

/// What a client does about a return code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Success, or as good as: the aim is already reached.
    Ok,
    /// The cached `access_token` is bad: fetch a new one and repeat the call once.
    Token,
    /// Transient: repeat with delay and jitter, bounded.
    Backoff,
    /// Per-minute limit: repeat after the minute.
    Minute,
    /// The quota is gone: stop until it resets.
    Day,
    /// The request is wrong: the same bytes fail again.
    Caller,
    /// This recipient cannot be reached this way now.
    Recipient,
    /// The account's set-up, permissions or allow-list must change first.
    Config,
    /// A one-time or expiring grant (code, `form_id`, `session_key`) is spent: the user must act
    /// again.
    Grant,
    /// Not in the table: do not repeat.
    Unknown,
}

impl ErrCode {
    /// What to do about the code, whatever the call was.
    ///
    /// 40003 counts as [`Class::Recipient`]; see [`ApiError::class`](crate::ApiError::class) for
    /// 40001.
    pub fn class(self) -> Class {
        match self.0 {
            0 | 45065 | 45081 => Class::Ok,
            40001 | 40014 | 42001 => Class::Token,
            -1 | 42010 | 43108 | 45066 | 61450 => Class::Backoff,
            45011 => Class::Minute,
            45009 | 45028 => Class::Day,
            40003 | 40226 | 43004 | 43005 | 43019 | 43101 | 45015 | 45047 | 45080 | 48002
            | 50005 | 70000 => Class::Recipient,
            40013
            | 40036
            | 40037
            | 40048
            | 40125
            | 40164
            | 40243
            | 40251
            | 40252
            | 43102
            | 43104
            | 43107
            | 43116
            | 48001
            | 48004
            | 48006
            | 48008
            | 50001
            | 50002
            | 50004
            | 50007
            | 61004
            | 61007
            | 200_011
            | 200_012
            | 85_000..=86_999
            | 89_000..=89_999 => Class::Config,
            40029 | 40030 | 40163 | 41028 | 41029 | 42002 | 42003 | 42007 | 87007 | 87009 => {
                Class::Grant
            }
            40002
            | 40004
            | 40006..=40009
            | 40031..=40033
            | 40035
            | 40038
            | 40039
            | 40097
            | 40132
            | 40165
            | 40166
            | 40249
            | 40250
            | 41001..=41006
            | 41008
            | 41009
            | 41030
            | 43001..=43003
            | 44001..=44004
            | 45001..=45003
            | 45008
            | 45067
            | 45072
            | 45157..=45159
            | 45168
            | 46001
            | 46003
            | 46004
            | 47001
            | 47003
            | 61451
            | 61452
            | 65303
            | 65318
            | 76001..=76004
            | 76021
            | 76022
            | 87008
            | 87014
            | 200_013..=200_022
            | 9_001_001.. => Class::Caller,
            _ => Class::Unknown,
        }
    }
}

impl fmt::Display for ErrCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::{Class, ErrCode};

    /// The Class column of the global list, in its order, then of the lists of single interfaces.
    ///
    /// "RECIPIENT / CALLER" counts as its first, ranges are sampled at both ends.
    const TABLE: &[(Class, &[i64])] = &[
        (Class::Backoff, &[-1]),
        (Class::Ok, &[0]),
        (Class::Token, &[40001]),
        (Class::Caller, &[40002]),
        (Class::Recipient, &[40003]),
        (Class::Caller, &[40004, 40006, 40007, 40008, 40009]),
        (Class::Config, &[40013]),
        (Class::Token, &[40014]),
        (Class::Grant, &[40029, 40030]),
        (Class::Caller, &[40031, 40032, 40033, 40035]),
        (Class::Config, &[40036, 40037]),
        (Class::Caller, &[40038, 40039]),
        (Class::Config, &[40048]),
        (Class::Caller, &[40097]),
        (Class::Config, &[40125]),
        (Class::Caller, &[40132]),
        (Class::Grant, &[40163]),
        (Class::Config, &[40164]),
        (Class::Caller, &[40165, 40166]),
        (Class::Recipient, &[40226]),
        (Class::Config, &[40243]),
        (
            Class::Caller,
            &[41001, 41002, 41003, 41004, 41005, 41006, 41008, 41009],
        ),
        (Class::Grant, &[41028, 41029]),
        (Class::Caller, &[41030]),
        (Class::Token, &[42001]),
        (Class::Grant, &[42002, 42003, 42007]),
        (Class::Backoff, &[42010]),
        (Class::Caller, &[43001, 43002, 43003]),
        (Class::Recipient, &[43004, 43005, 43019, 43101]),
        (Class::Config, &[43104, 43107, 43116]),
        (Class::Backoff, &[43108]),
        (
            Class::Caller,
            &[44001, 44002, 44003, 44004, 45001, 45002, 45003, 45008],
        ),
        (Class::Day, &[45009]),
        (Class::Minute, &[45011]),
        (Class::Recipient, &[45015]),
        (Class::Day, &[45028]),
        (Class::Recipient, &[45047]),
        (Class::Ok, &[45065]),
        (Class::Backoff, &[45066]),
        (Class::Caller, &[45067, 45072]),
        (Class::Recipient, &[45080]),
        (Class::Ok, &[45081]),
        (
            Class::Caller,
            &[
                45157, 45158, 45159, 45168, 46001, 46003, 46004, 47001, 47003,
            ],
        ),
        (Class::Config, &[48001]),
        (Class::Recipient, &[48002]),
        (Class::Config, &[48004, 48006, 48008, 50001, 50002]),
        (Class::Recipient, &[50005]),
        (Class::Config, &[61004, 61007]),
        (Class::Backoff, &[61450]),
        (Class::Caller, &[61451, 61452, 65303, 65318]),
        (Class::Recipient, &[70000]),
        (Class::Caller, &[76001, 76002, 76003, 76004, 76021, 76022]),
        (Class::Config, &[85000, 85999, 86000, 86999, 89000, 89999]),
        (Class::Grant, &[87007, 87009]),
        (Class::Caller, &[87008, 87014]),
        (Class::Config, &[89501, 89503, 89506, 89507]),
        (Class::Config, &[200_011, 200_012]),
        (Class::Caller, &[200_013, 200_022]),
        (Class::Caller, &[9_001_001, 9_001_036]),
        // Tokens.
        (Class::Config, &[50004, 50007]),
        // Template messages.
        (Class::Caller, &[40249, 40250]),
        (Class::Config, &[40251, 40252]),
        // Subscribe messages.
        (Class::Config, &[43102]),
        // Nobody's.
        (
            Class::Unknown,
            &[
                1,
                -2,
                40000,
                41007,
                84999,
                90000,
                200_010,
                9_001_000,
                i64::MIN,
            ],
        ),
    ];

    #[test]
    fn classes_follow_the_table() {
        for (class, codes) in TABLE {
            for code in *codes {
                assert_eq!(ErrCode(*code).class(), *class, "{code}");
            }
        }
    }

    #[test]
    fn codes_are_shown_as_their_number() {
        assert_eq!(ErrCode::SYSTEM_ERROR.to_string(), "-1");
        assert_eq!(ErrCode::INVALID_CREDENTIAL.to_string(), "40001");
    }
}
