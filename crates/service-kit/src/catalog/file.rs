//! The text of `wxhub.toml`, checked.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use toml::Spanned;
use wechat::{AppId, AppSecret, crypto::EncodingAESKey};

use super::{
    App, AppKind, AppList, Callback, CallbackMode, CallbackToken, Catalog, KeyedCaller, Mistake,
    Needs, OnAmbiguous, TokenMode, caller_of,
};
use crate::caller::Scope;

/// The highest `send_rate`, in messages a second.
const MAX_SEND_RATE: u32 = 100_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    apps: Vec<Spanned<AppEntry>>,
    #[serde(default)]
    callers: Vec<Spanned<CallerEntry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AppEntry {
    app_id: Spanned<String>,
    name: Spanned<String>,
    kind: AppKind,
    secret: Option<Spanned<String>>,
    secret_env: Option<Spanned<String>>,
    secret_file: Option<Spanned<PathBuf>>,
    #[serde(default)]
    token_mode: TokenMode,
    callback: Option<Spanned<CallbackEntry>>,
    #[serde(default)]
    oauth: OauthEntry,
    #[serde(default)]
    jssdk: JssdkEntry,
    #[serde(default)]
    verify_files: BTreeMap<Spanned<String>, String>,
    #[serde(default)]
    on_ambiguous: OnAmbiguous,
    send_rate: Option<Spanned<i64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CallbackEntry {
    token: OneOrMany,
    encoding_aes_key: Option<OneOrMany>,
    mode: CallbackMode,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct OauthEntry {
    #[serde(default)]
    return_hosts: Vec<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct JssdkEntry {
    #[serde(default)]
    hosts: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CallerEntry {
    name: Spanned<String>,
    key_sha256: Spanned<OneOrMany>,
    apps: Vec<Spanned<String>>,
    scopes: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// Notes mistakes by the byte offset at which they stand.
struct Check<'a> {
    text: &'a str,
    mistakes: Vec<Mistake>,
}

impl Check<'_> {
    fn mistake(&mut self, offset: usize, what: impl Into<String>) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        self.mistakes.push(Mistake {
            line: before.matches('\n').count() + 1,
            what: what.into(),
        });
    }
}

pub(super) fn parse(
    text: &str,
    needs: Needs,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Catalog, Vec<Mistake>> {
    let mut check = Check {
        text,
        mistakes: Vec::new(),
    };
    let file: File = match toml::from_str(text) {
        Ok(file) => file,
        Err(error) => {
            // Only the message: the rendered error repeats the line, and with it perhaps a secret.
            let offset = error.span().map_or(0, |span| span.start);
            check.mistake(offset, without_values(error.message()));
            return Err(check.mistakes);
        }
    };

    if file.apps.is_empty() {
        check.mistake(0, "declares no app: is the file complete?");
    }
    let apps = apps(file.apps, needs, env, &mut check);
    let callers = callers(file.callers, &apps, &mut check);
    if check.mistakes.is_empty() {
        Ok(Catalog::new(text, apps, callers))
    } else {
        check.mistakes.sort_by_key(|mistake| mistake.line);
        Err(check.mistakes)
    }
}

/// Some messages quote the value that stands there, which may be a secret in the wrong place: it is cut out. What is
/// quoted after it, the names that would be right, stays.
fn without_values(message: &str) -> String {
    let quotes_a_value = ["invalid type", "invalid value", "unknown variant"]
        .iter()
        .any(|start| message.starts_with(start));
    let Some(first) = message.find(['"', '`']).filter(|_| quotes_a_value) else {
        return message.to_owned();
    };
    let (head, rest) = message.split_at(first);
    // A text holds whatever quotes it likes, so it ends where the last of them stands; a variant or number holds none.
    let end = if rest.starts_with('"') {
        rest.rfind('"')
    } else {
        rest.get(1..)
            .and_then(|value| value.find('`'))
            .map(|end| end + 1)
    };
    let tail = end.and_then(|end| rest.get(end + 1..)).unwrap_or_default();
    format!("{head}(not shown){tail}")
}

fn apps(
    entries: Vec<Spanned<AppEntry>>,
    needs: Needs,
    env: &dyn Fn(&str) -> Option<String>,
    check: &mut Check<'_>,
) -> Vec<Arc<App>> {
    let mut seen = HashSet::new();
    let mut apps = Vec::new();
    for entry in entries {
        let at = entry.span().start;
        let entry = entry.into_inner();
        let name = entry.name.get_ref();
        if !is_name(name) {
            let what = format!("name {name:?} must be 1 to 32 of a-z, 0-9 and -");
            check.mistake(entry.name.span().start, what);
        }
        for (text, offset) in [
            (name, entry.name.span().start),
            (entry.app_id.get_ref(), entry.app_id.span().start),
        ] {
            if !seen.insert(text.clone()) {
                check.mistake(offset, format!("{text:?} names an app twice"));
            }
        }
        let app_id = entry.app_id.get_ref().parse::<AppId>();
        if app_id.is_err() {
            let what = format!("app_id {:?} is malformed", entry.app_id.get_ref());
            check.mistake(entry.app_id.span().start, what);
        }
        let hosts = |hosts: Vec<Spanned<String>>, check: &mut Check<'_>| {
            let mut good = Vec::new();
            for host in hosts {
                let at = host.span().start;
                match normal_host(host.get_ref()) {
                    Some(host) => good.push(host),
                    None => check.mistake(
                        at,
                        format!(
                            "{:?} is not a bare host name such as \"h5.example.com\"",
                            host.get_ref()
                        ),
                    ),
                }
            }
            good
        };
        let oauth_return_hosts = hosts(entry.oauth.return_hosts, check);
        let jssdk_hosts = hosts(entry.jssdk.hosts, check);
        for file in entry.verify_files.keys() {
            if !is_verify_file(file.get_ref()) {
                let what = format!(
                    "verify file {:?} must be named like \"MP_verify_xxx.txt\"",
                    file.get_ref()
                );
                check.mistake(file.span().start, what);
            }
        }
        let secret = resolve_secret(
            at,
            name,
            entry.secret,
            entry.secret_env,
            entry.secret_file,
            needs,
            env,
            check,
        );
        let callback = entry
            .callback
            .filter(|_| needs.callbacks)
            .and_then(|callback| callback_of(callback, check));
        let send_rate = entry.send_rate.and_then(|rate| send_rate_of(&rate, check));
        let Ok(app_id) = app_id else { continue };
        apps.push(Arc::new(App {
            app_id,
            name: entry.name.into_inner(),
            kind: entry.kind,
            secret,
            token_mode: entry.token_mode,
            callback,
            oauth_return_hosts,
            jssdk_hosts,
            verify_files: entry
                .verify_files
                .into_iter()
                .map(|(name, text)| (name.into_inner(), text))
                .collect(),
            on_ambiguous: entry.on_ambiguous,
            send_rate,
        }));
    }
    apps
}

#[expect(
    clippy::too_many_arguments,
    reason = "the three ways to give one secret, and where to look"
)]
fn resolve_secret(
    at: usize,
    app: &str,
    inline: Option<Spanned<String>>,
    variable: Option<Spanned<String>>,
    file: Option<Spanned<PathBuf>>,
    needs: Needs,
    env: &dyn Fn(&str) -> Option<String>,
    check: &mut Check<'_>,
) -> Option<AppSecret> {
    let given = usize::from(inline.is_some())
        + usize::from(variable.is_some())
        + usize::from(file.is_some());
    if given != 1 {
        let what = format!("app {app:?} needs exactly one of secret_env, secret_file and secret");
        check.mistake(at, what);
        return None;
    }
    if !needs.app_secrets {
        return None;
    }
    let (offset, found) = if let Some(inline) = inline {
        (inline.span().start, Ok(inline.into_inner()))
    } else if let Some(variable) = variable {
        let name = variable.get_ref();
        let value = if is_variable(name) {
            env(name)
                .ok_or_else(|| format!("environment variable {name} of app {app:?} is not set"))
        } else {
            // It may be the secret itself: it is not repeated.
            Err(format!(
                "secret_env of app {app:?} must name an environment variable, such as \"WX_SHOP_SECRET\""
            ))
        };
        (variable.span().start, value)
    } else if let Some(file) = file {
        let path = file.get_ref();
        let text = std::fs::read_to_string(path).map_err(|error| {
            format!(
                "secret_file {} of app {app:?} cannot be read: {error}",
                path.display()
            )
        });
        (file.span().start, text)
    } else {
        return None;
    };
    match found.map(|text| text.trim().to_owned()) {
        Ok(text) if text.is_empty() => {
            check.mistake(offset, format!("the AppSecret of app {app:?} is empty"));
            None
        }
        Ok(text) => Some(AppSecret::new(text)),
        Err(what) => {
            check.mistake(offset, what);
            None
        }
    }
}

fn send_rate_of(rate: &Spanned<i64>, check: &mut Check<'_>) -> Option<u32> {
    let checked = u32::try_from(*rate.get_ref()).ok();
    let checked = checked.filter(|rate| (1..=MAX_SEND_RATE).contains(rate));
    if checked.is_none() {
        let what = format!("send_rate must be 1 to {MAX_SEND_RATE} messages a second");
        check.mistake(rate.span().start, what);
    }
    checked
}

fn callback_of(entry: Spanned<CallbackEntry>, check: &mut Check<'_>) -> Option<Callback> {
    let at = entry.span().start;
    let entry = entry.into_inner();
    let tokens = entry.token.into_vec();
    let is_token = |token: &String| {
        (3..=32).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_alphanumeric())
    };
    if tokens.is_empty() || !tokens.iter().all(is_token) {
        check.mistake(at, "callback.token must be 3 to 32 letters and digits");
        return None;
    }
    let mut keys = Vec::new();
    for text in entry
        .encoding_aes_key
        .map(OneOrMany::into_vec)
        .unwrap_or_default()
    {
        match text.parse::<EncodingAESKey>() {
            Ok(key) => keys.push(key),
            Err(_) => {
                check.mistake(
                    at,
                    "callback.encoding_aes_key must be the 43 characters of WeChat's console",
                );
                return None;
            }
        }
    }
    if keys.is_empty() && entry.mode != CallbackMode::Plain {
        check.mistake(
            at,
            "callback.encoding_aes_key is missing: only mode \"plain\" goes without",
        );
        return None;
    }
    Some(Callback {
        tokens: tokens.into_iter().map(CallbackToken::new).collect(),
        encoding_aes_keys: keys,
        mode: entry.mode,
    })
}

fn callers(
    entries: Vec<Spanned<CallerEntry>>,
    apps: &[Arc<App>],
    check: &mut Check<'_>,
) -> Vec<KeyedCaller> {
    let ids: HashMap<&str, &AppId> = apps
        .iter()
        .flat_map(|app| {
            [
                (app.app_id.as_str(), &app.app_id),
                (app.name.as_str(), &app.app_id),
            ]
        })
        .collect();
    let mut seen = HashSet::new();
    let mut owners = HashMap::new();
    let mut callers = Vec::new();
    for entry in entries {
        let entry = entry.into_inner();
        let name = entry.name.get_ref().clone();
        if !is_name(&name) {
            check.mistake(
                entry.name.span().start,
                format!("name {name:?} must be 1 to 32 of a-z, 0-9 and -"),
            );
        }
        if !seen.insert(name.clone()) {
            check.mistake(
                entry.name.span().start,
                format!("{name:?} names a caller twice"),
            );
        }
        let at = entry.key_sha256.span().start;
        let mut key_hashes = Vec::new();
        for text in entry.key_sha256.into_inner().into_vec() {
            let mut hash = [0u8; 32];
            if hex::decode_to_slice(text.trim(), &mut hash).is_err() {
                let what = "key_sha256 must be 64 hex digits: printf %s \"$KEY\" | sha256sum";
                check.mistake(at, what);
            } else if hash == <[u8; 32]>::from(Sha256::digest("")) {
                check.mistake(at, "key_sha256 is that of an empty key: is $KEY set?");
            } else if let Some(other) = owners.insert(hash, name.clone()) {
                check.mistake(at, format!("key_sha256 is also that of caller {other:?}"));
            } else {
                key_hashes.push(hash);
            }
        }
        if key_hashes.is_empty() && check.mistakes.is_empty() {
            check.mistake(at, format!("caller {name:?} has no key"));
        }
        let list = if entry.apps.iter().any(|app| app.get_ref() == "*") {
            AppList::All
        } else {
            let mut list = Vec::new();
            for app in &entry.apps {
                match ids.get(app.get_ref().as_str()) {
                    Some(id) => list.push((*id).clone()),
                    None => check.mistake(
                        app.span().start,
                        format!("no app is called {:?}", app.get_ref()),
                    ),
                }
            }
            AppList::Some(list)
        };
        let mut scopes = Vec::new();
        for scope in entry.scopes {
            match scope.get_ref().parse::<Scope>() {
                Ok(scope) => scopes.push(scope),
                Err(_) => {
                    let known = Scope::ALL.map(Scope::as_str).join(", ");
                    let what = format!(
                        "no scope is called {:?}; there are {known}",
                        scope.get_ref()
                    );
                    check.mistake(scope.span().start, what);
                }
            }
        }
        callers.push(KeyedCaller {
            key_hashes,
            caller: caller_of(name, list, scopes),
        });
    }
    callers
}

fn is_name(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

fn is_variable(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_uppercase() || first == '_')
        && name
            .bytes()
            .all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_'))
}

fn is_verify_file(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.ends_with(".txt")
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

/// A host as a URL parser writes it (lower case, punycode), or none when it is more or less than a host.
fn normal_host(text: &str) -> Option<String> {
    let url = url::Url::parse(&format!("https://{text}/")).ok()?;
    let bare = url.path() == "/"
        && url.port().is_none()
        && url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none()
        && !text.contains([':', '/', '@', '\\', '?', '#', '%'])
        && !text.trim().is_empty();
    url.host_str().filter(|_| bare).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Needs = Needs {
        app_secrets: true,
        callbacks: true,
    };

    const GOOD: &str = r#"
[[apps]]
app_id = "wx0000000000000001"
name = "shop"
kind = "mini_program"
secret_env = "WX_SHOP_SECRET"

[[apps]]
app_id = "wx0000000000000002"
name = "news"
kind = "official_account"
secret = "inline-secret"
token_mode = "classic"
callback = { token = ["current", "previous"], encoding_aes_key = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG", mode = "safe" }
oauth = { return_hosts = ["H5.example.com"] }
jssdk = { hosts = ["h5.example.com"] }
verify_files = { "MP_verify_xxx.txt" = "xxx" }
on_ambiguous = "at_most_once"
send_rate = 500

[[callers]]
name = "crm"
key_sha256 = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"
apps = ["shop"]
scopes = ["token.read", "push.send"]
"#;

    fn env(name: &str) -> Option<String> {
        (name == "WX_SHOP_SECRET").then(|| "from-the-environment".to_owned())
    }

    fn mistakes(text: &str) -> Vec<String> {
        match parse(text, ALL, &env) {
            Err(mistakes) => mistakes
                .into_iter()
                .map(|mistake| format!("{}: {}", mistake.line, mistake.what))
                .collect(),
            other => panic!("expected mistakes, not {other:?}"),
        }
    }

    #[test]
    fn reads_apps_and_callers() {
        let catalog = parse(GOOD, ALL, &env).unwrap();
        let shop = catalog.app("shop").unwrap();
        assert_eq!(shop.app_id.as_str(), "wx0000000000000001");
        assert_eq!(
            shop.secret.as_ref().unwrap().expose(),
            "from-the-environment"
        );
        assert_eq!(shop.token_mode, TokenMode::Stable);
        let news = catalog.app("wx0000000000000002").unwrap();
        assert_eq!(news.token_mode, TokenMode::Classic);
        assert_eq!(news.on_ambiguous, OnAmbiguous::AtMostOnce);
        assert_eq!((shop.send_rate, news.send_rate), (None, Some(500)));
        assert_eq!(news.oauth_return_hosts, ["h5.example.com"]);
        assert_eq!(news.callback.as_ref().unwrap().tokens.len(), 2);
        let caller = catalog.caller("key").unwrap();
        assert_eq!(caller.name, "crm");
        assert!(caller.apps.contains(&shop.app_id));
        assert!(!caller.apps.contains(&news.app_id));
        assert!(catalog.caller("another key").is_none());
    }

    #[test]
    fn holds_no_secret_that_the_service_does_not_need() {
        let catalog = parse(GOOD, Needs::default(), &|_| None).unwrap();
        for app in catalog.apps() {
            assert!(app.secret.is_none());
            assert!(app.callback.is_none());
        }
    }

    #[test]
    fn prints_no_secret() {
        let printed = format!("{:?}", parse(GOOD, ALL, &env).unwrap());
        for secret in [
            "inline-secret",
            "from-the-environment",
            "previous",
            "abcdefghijklmnop",
        ] {
            assert!(!printed.contains(secret), "{printed}");
        }
    }

    #[test]
    fn names_every_mistake_with_its_line() {
        let text = GOOD
            .replace("name = \"shop\"", "name = \"Shop\"")
            .replace("WX_SHOP_SECRET", "WX_MISSING")
            .replace("apps = [\"shop\"]", "apps = [\"shoe\"]")
            .replace("\"push.send\"", "\"push.sent\"");
        let found = mistakes(&text);
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(found[0].starts_with("4: name \"Shop\""), "{found:#?}");
        assert!(
            found[1].starts_with("6: environment variable WX_MISSING"),
            "{found:#?}"
        );
        assert!(
            found[2].starts_with("24: no app is called \"shoe\""),
            "{found:#?}"
        );
        assert!(
            found[3].starts_with("25: no scope is called \"push.sent\""),
            "{found:#?}"
        );
    }

    #[test]
    fn a_send_rate_is_a_number_of_messages_a_second() {
        for rate in ["1", "100000"] {
            let text = GOOD.replace("send_rate = 500", &format!("send_rate = {rate}"));
            assert!(parse(&text, ALL, &env).is_ok(), "{rate}");
        }
        for rate in ["0", "-1", "100001", "4294967297"] {
            let found = mistakes(&GOOD.replace("send_rate = 500", &format!("send_rate = {rate}")));
            assert_eq!(
                found,
                ["19: send_rate must be 1 to 100000 messages a second"]
            );
        }
    }

    #[test]
    fn a_misspelt_key_is_a_mistake() {
        let found = mistakes(&GOOD.replace("token_mode", "tokenmode"));
        assert!(found[0].contains("unknown field `tokenmode`"), "{found:#?}");
    }

    #[test]
    fn a_misplaced_secret_is_not_repeated() {
        let text = GOOD.replace(
            "secret = \"inline-secret\"",
            "secret_file = \"f\"\ncallback = \"inline-secret\"",
        );
        let text = text.replace("callback = { token", "other = { token");
        let found = mistakes(&text);
        assert!(!found[0].contains("inline-secret"), "{found:#?}");
    }

    #[test]
    fn a_value_in_the_wrong_place_is_not_repeated() {
        for (right, wrong) in [
            ("\"WX_SHOP_SECRET\"", "\"s3cr3tvalue\""),
            ("secret = \"inline-secret\"", "secret = 8735029"),
            ("token_mode = \"classic\"", "token_mode = \"s3cr3tvalue\""),
            ("kind = \"mini_program\"", "kind = \"s3cr3t`value\""),
        ] {
            let found = mistakes(&GOOD.replace(right, wrong)).join("\n");
            assert!(
                !found.contains("s3cr3t") && !found.contains("8735029"),
                "{found}"
            );
        }
        let found = mistakes(&GOOD.replace("mini_program", "miniprogram"));
        assert!(
            found[0].contains("expected `mini_program` or `official_account`"),
            "{found:#?}"
        );
    }

    #[test]
    fn an_empty_key_and_a_shared_key_are_mistakes() {
        let hash = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683";
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let found = mistakes(&GOOD.replace(hash, empty));
        assert!(found[0].contains("empty key"), "{found:#?}");
        let second =
            format!("[[callers]]\nname = \"b\"\nkey_sha256 = \"{hash}\"\napps = []\nscopes = []\n");
        let found = mistakes(&format!("{GOOD}\n{second}"));
        assert!(
            found[0].contains("also that of caller \"crm\""),
            "{found:#?}"
        );
    }

    #[test]
    fn a_file_without_apps_is_a_mistake() {
        assert!(mistakes("")[0].contains("declares no app"));
    }

    #[test]
    fn one_name_for_two_apps_is_a_mistake() {
        let found = mistakes(&GOOD.replace("name = \"news\"", "name = \"shop\""));
        assert!(found[0].contains("names an app twice"), "{found:#?}");
    }

    #[test]
    fn only_bare_hosts_are_hosts() {
        for bad in [
            "https://h5.example.com",
            "h5.example.com/x",
            "user@h5.example.com",
            "h5.example.com:443",
            "",
        ] {
            assert_eq!(normal_host(bad), None, "{bad}");
        }
        assert_eq!(
            normal_host("H5.Example.com").as_deref(),
            Some("h5.example.com")
        );
    }
}
