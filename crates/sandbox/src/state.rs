//! Everything this WeChat knows, and what a developer may do to it: the same verbs over HTTP and in process.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    account::{Account, Accounts, is_open_id},
    bounded::BoundedList,
    callback::{self, Delivery, PassiveReply, Push, Target, Verification, push::is_field_name},
    calls::{CallLog, Calls},
    clock::Clock,
    code::mint_code,
    config::{Config, Kind},
    fault::{Fault, Faults},
    login::mint_session_key,
    message::{INBOX, Message, MessageKind, MsgIds, Receipt, Trigger},
};

/// Receipts under way at once; more than these are dropped.
const RECEIPTS: usize = 256;

/// A running sandbox's state. Clones are the same one.
#[derive(Clone)]
pub struct State(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) clock: Clock,
    world: Mutex<World>,
    http: reqwest::Client,
    receipts: Arc<Semaphore>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stopping: CancellationToken,
}

pub(crate) struct World {
    pub(crate) accounts: Accounts,
    pub(crate) inbox: BoundedList<Message>,
    pub(crate) calls: CallLog,
    pub(crate) faults: Faults,
    pub(crate) msg_ids: MsgIds,
    /// Whether those who refuse web authorisation come back to the page.
    pub(crate) refusals_return: bool,
}

/// Why the sandbox would not do what a developer asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No account has this app id.
    #[error("no account has the app_id {0}")]
    UnknownApp(String),
    /// The request makes no sense; the text says why.
    #[error("{0}")]
    Invalid(String),
}

/// A user who just called `wx.login`.
#[derive(Debug, Clone, Serialize)]
pub struct Login {
    /// For the mini program's server: five minutes, one use.
    pub js_code: String,
    /// The user.
    pub open_id: String,
}

/// A user who just submitted a form.
#[derive(Debug, Clone, Serialize)]
pub struct Form {
    /// For one message within seven days.
    pub form_id: String,
    /// The user.
    pub open_id: String,
}

/// Something that was uploaded.
#[derive(Debug, Clone, Serialize)]
pub struct Media {
    /// For any message that shows something.
    pub media_id: String,
}

/// A user of an account.
#[derive(Debug, Clone, Serialize)]
pub struct UserView {
    /// The user within the account.
    pub open_id: String,
    /// The person behind the users of all accounts.
    pub union_id: String,
    /// Whether the user follows the official account.
    pub follows: bool,
}

/// An account, as the phone shows it.
#[derive(Debug, Clone, Serialize)]
pub struct AccountView {
    /// The app id.
    pub app_id: String,
    /// What it is.
    pub kind: Kind,
    /// The `gh_…` name.
    pub original_id: String,
    /// The user that is meant when none is named.
    pub default_open_id: String,
    /// The users, the latest hundred, oldest first.
    pub users: Vec<UserView>,
}

/// What WeChat thinks of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Whether calls with it are accepted now.
    pub accepted: bool,
    /// How long ago a newer one was issued, if one was.
    pub superseded_for: Option<Duration>,
}

/// What a user does to an account: sends a message, or causes an event.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deliver {
    /// The account.
    pub app_id: String,
    /// The user; the default one when absent.
    #[serde(default)]
    pub open_id: Option<String>,
    /// `text` when absent, `event` when there is an `event`.
    #[serde(default)]
    pub msg_type: Option<String>,
    /// The text of a text message.
    #[serde(default)]
    pub content: Option<String>,
    /// The event's name, such as `subscribe` or `CLICK`.
    #[serde(default)]
    pub event: Option<String>,
    /// Further fields, under WeChat's names.
    #[serde(default)]
    pub fields: Map<String, Value>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

impl State {
    pub(crate) fn new(config: Config) -> reqwest::Result<Self> {
        let clock = Clock::default();
        let world = World {
            accounts: config
                .accounts
                .into_iter()
                .map(|account| (account.app_id.clone(), Account::new(account)))
                .collect(),
            inbox: BoundedList::new(INBOX),
            calls: CallLog::default(),
            faults: Faults::default(),
            msg_ids: MsgIds::starting(clock.now()),
            refusals_return: true,
        };
        Ok(Self(Arc::new(Shared {
            clock,
            world: Mutex::new(world),
            http: callback::client()?,
            receipts: Arc::new(Semaphore::new(RECEIPTS)),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        })))
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.0.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The accounts and their users.
    pub fn accounts(&self) -> Vec<AccountView> {
        self.world().accounts.values().map(view).collect()
    }

    /// A user logs in to a mini program: a fresh js_code, and a fresh session_key behind it.
    ///
    /// # Errors
    /// The account is none, or no mini program; the openid is none.
    pub fn login(&self, app_id: &str, open_id: Option<&str>) -> Result<Login, Error> {
        let now = self.0.clock.now();
        let mut world = self.world();
        let account = mini_program(&mut world, app_id)?;
        let open_id = resolve(account, open_id)?;
        if let Some(user) = account.user_or_new(&open_id) {
            user.session_key = Some(mint_session_key());
        }
        Ok(Login {
            js_code: account.js_codes.issue(open_id.clone(), now),
            open_id,
        })
    }

    /// A user submits a form in a mini program.
    ///
    /// # Errors
    /// The account is none, or no mini program; the openid is none.
    pub fn form(&self, app_id: &str, open_id: Option<&str>) -> Result<Form, Error> {
        let now = self.0.clock.now();
        let mut world = self.world();
        let account = mini_program(&mut world, app_id)?;
        let open_id = resolve(account, open_id)?;
        account.user_or_new(&open_id);
        Ok(Form {
            form_id: account.form_ids.issue(&open_id, now),
            open_id,
        })
    }

    /// Somebody uploads a picture, a film or a sound for the account's messages.
    ///
    /// # Errors
    /// The account is none.
    pub fn media(&self, app_id: &str) -> Result<Media, Error> {
        let mut world = self.world();
        let account = account(&mut world, app_id)?;
        let media_id = mint_code();
        account.media_ids.insert(media_id.clone(), ());
        Ok(Media { media_id })
    }

    /// Makes a user, or changes whether one follows.
    ///
    /// # Errors
    /// The account is none; the openid is none.
    pub fn user(
        &self,
        app_id: &str,
        open_id: Option<&str>,
        follows: Option<bool>,
    ) -> Result<UserView, Error> {
        let mut world = self.world();
        let account = account(&mut world, app_id)?;
        let open_id = match open_id {
            None => account.mint_user(),
            named => resolve(account, named)?,
        };
        let Some(user) = account.user_or_new(&open_id) else {
            return Err(Error::Invalid("no such user".to_owned()));
        };
        user.follows = follows.unwrap_or(user.follows);
        Ok(UserView {
            union_id: user.union_id.clone(),
            follows: user.follows,
            open_id,
        })
    }

    /// Lets a user block the account's messages from templates, or take them again: they are accepted all the same, and
    /// a receipt tells that the user did not get them.
    ///
    /// # Errors
    /// The account is none; the openid is none.
    pub fn block(&self, app_id: &str, open_id: &str, blocks: bool) -> Result<(), Error> {
        let mut world = self.world();
        let account = account(&mut world, app_id)?;
        let open_id = resolve(account, Some(open_id))?;
        let user = account.user_or_new(&open_id);
        user.ok_or_else(|| Error::Invalid("no such user".to_owned()))?
            .blocks = blocks;
        Ok(())
    }

    /// What users received, newest last; of one account or user, or of all.
    pub fn inbox(&self, app_id: Option<&str>, open_id: Option<&str>) -> Vec<Message> {
        let world = self.world();
        let wanted = |message: &&Message| {
            app_id.is_none_or(|app_id| message.app_id == app_id)
                && open_id.is_none_or(|open_id| message.open_id == open_id)
        };
        world.inbox.iter().filter(wanted).cloned().collect()
    }

    /// Empties the inbox.
    pub fn clear_inbox(&self) {
        self.world().inbox.clear();
    }

    /// A user sends a message, or causes an event: pushes it to the account's callback as WeChat does, and judges the
    /// answer.
    ///
    /// # Errors
    /// The account is none, or has no callback; the message makes no sense.
    pub async fn deliver(&self, deliver: Deliver) -> Result<Delivery, Error> {
        let app_id = deliver.app_id.clone();
        let (target, push) = self.prepare(deliver)?;
        let shared = &self.0;
        let delivery = callback::deliver(&shared.http, &shared.clock, &target, &push).await;
        if let Some(PassiveReply::Message(reply)) = &delivery.reply {
            let content = reply
                .content
                .clone()
                .unwrap_or_else(|| format!("[{}]", reply.msg_type));
            self.world().inbox.push(Message {
                app_id,
                open_id: push.from,
                kind: MessageKind::Reply,
                content,
                msgid: None,
                time: shared.clock.now().as_secs(),
                message: reply.fields.clone(),
            });
        }
        Ok(delivery)
    }

    /// Builds the push, and does to the user what it means: following, and the window for customer-service messages.
    fn prepare(&self, deliver: Deliver) -> Result<(Target, Push), Error> {
        let now = self.0.clock.now();
        let mut world = self.world();
        let msg_id = world.msg_ids.next();
        let account = account(&mut world, &deliver.app_id)?;
        let open_id = resolve(account, deliver.open_id.as_deref())?;
        let default = if deliver.event.is_some() {
            "event"
        } else {
            "text"
        };
        let msg_type = deliver.msg_type.unwrap_or_else(|| default.to_owned());
        let mut fields = Map::new();
        if let Some(event) = &deliver.event {
            fields.insert("Event".to_owned(), json!(event));
        }
        if let Some(content) = deliver.content {
            fields.insert("Content".to_owned(), json!(content));
        }
        fields.extend(deliver.fields);
        if (msg_type == "event") != fields.contains_key("Event") {
            return Err(Error::Invalid(
                "event goes with msg_type event, and with no other".to_owned(),
            ));
        }
        if msg_type == "text" && !fields.contains_key("Content") {
            return Err(Error::Invalid("a text message needs content".to_owned()));
        }
        if let Some(name) = misnamed(&fields) {
            return Err(Error::Invalid(format!(
                "fields: {name} cannot be the name of an XML element"
            )));
        }
        let target = Target::of(&account.config)
            .ok_or_else(|| Error::Invalid(format!("{} has no callback", deliver.app_id)))?;
        let event = fields
            .get("Event")
            .and_then(Value::as_str)
            .map(str::to_ascii_lowercase);
        let kind = account.config.kind;
        if let Some(user) = account.user_or_new(&open_id) {
            match event.as_deref() {
                Some("subscribe") => user.follows = true,
                Some("unsubscribe") => user.follows = false,
                _ => {}
            }
            if let Some(trigger) = Trigger::of(kind, &msg_type, event.as_deref()) {
                user.windows.open(trigger, now);
                if trigger == Trigger::Message {
                    user.typing.message(now);
                }
            }
        }
        let msg_id = (msg_type != "event").then_some(msg_id);
        Ok((
            target,
            Push {
                from: open_id,
                create_time: now.as_secs(),
                msg_type,
                msg_id,
                fields,
            },
        ))
    }

    /// Tells the account, in its own time, what became of a message.
    pub(crate) fn send_receipt(&self, receipt: Receipt) {
        let Receipt {
            target,
            open_id,
            msg_id,
            fields,
        } = receipt;
        let Ok(permit) = Arc::clone(&self.0.receipts).try_acquire_owned() else {
            tracing::warn!(
                open_id,
                msg_id,
                "too many receipts are under way: this one is dropped"
            );
            return;
        };
        let shared = Arc::clone(&self.0);
        let push = Push {
            from: open_id,
            create_time: shared.clock.now().as_secs(),
            msg_type: "event".to_owned(),
            msg_id: None,
            fields,
        };
        self.0.tasks.spawn(async move {
            let _permit = permit;
            let delivery = callback::deliver(&shared.http, &shared.clock, &target, &push);
            if let Some(Delivery {
                problem: Some(problem),
                attempts,
                ..
            }) = shared.stopping.run_until_cancelled(delivery).await
            {
                tracing::info!(
                    msg_id,
                    attempts,
                    problem,
                    "the callback did not take a receipt"
                );
            }
        });
    }

    /// Verifies the account's server URL.
    ///
    /// # Errors
    /// The account is none, or has no callback.
    pub async fn verify(&self, app_id: &str) -> Result<Verification, Error> {
        let target = Target::of(&account(&mut self.world(), app_id)?.config)
            .ok_or_else(|| Error::Invalid(format!("{app_id} has no callback")))?;
        Ok(callback::verify(&self.0.http, &self.0.clock, &target).await)
    }

    /// Who called what, of one account or of all.
    pub fn calls(&self, app_id: Option<&str>) -> Calls {
        self.world().calls.of(app_id)
    }

    /// Makes a fault wait for its calls.
    ///
    /// # Errors
    /// The fault makes no sense, or too many are waiting.
    pub fn add_fault(&self, fault: Fault) -> Result<(), Error> {
        self.world().faults.add(fault).map_err(Error::Invalid)
    }

    /// Drops the faults that wait.
    pub fn clear_faults(&self) {
        self.world().faults.clear();
    }

    /// What WeChat thinks of `token`, without a call that would count.
    ///
    /// # Errors
    /// The account is none.
    pub fn standing(&self, app_id: &str, token: &str) -> Result<Standing, Error> {
        let now = self.0.clock.now();
        let mut world = self.world();
        let account = account(&mut world, app_id)?;
        Ok(Standing {
            accepted: matches!(account.check_token(token, now), Some(Ok(()))),
            superseded_for: account.superseded_for(token, now),
        })
    }

    /// Kills the account's tokens, classic and stable.
    ///
    /// # Errors
    /// The account is none.
    pub fn invalidate(&self, app_id: &str) -> Result<(), Error> {
        account(&mut self.world(), app_id)?.invalidate_tokens();
        Ok(())
    }

    /// Resets the AppSecret, which kills the account's tokens.
    ///
    /// # Errors
    /// The account is none, or the secret is empty.
    pub fn reset_secret(&self, app_id: &str, secret: String) -> Result<(), Error> {
        if secret.is_empty() {
            return Err(Error::Invalid("secret must not be empty".to_owned()));
        }
        account(&mut self.world(), app_id)?.reset_secret(secret);
        Ok(())
    }

    /// Moves this WeChat's time forward (by whole seconds) and tells what it is then, in Unix seconds.
    pub fn advance_clock(&self, by: Duration) -> u64 {
        self.0.clock.advance(by);
        self.0.clock.now().as_secs()
    }
}

fn account<'a>(world: &'a mut World, app_id: &str) -> Result<&'a mut Account, Error> {
    world
        .accounts
        .get_mut(app_id)
        .ok_or_else(|| Error::UnknownApp(app_id.to_owned()))
}

pub(crate) fn mini_program<'a>(
    world: &'a mut World,
    app_id: &str,
) -> Result<&'a mut Account, Error> {
    let account = account(world, app_id)?;
    if account.config.kind != Kind::MiniProgram {
        return Err(Error::Invalid(format!("{app_id} is no mini program")));
    }
    Ok(account)
}

/// The openid that is meant: the named one, which need not exist yet, or the default user's.
pub(crate) fn resolve(account: &Account, open_id: Option<&str>) -> Result<String, Error> {
    match open_id {
        None => Ok(account.default_open_id()),
        Some(open_id) if is_open_id(open_id) => Ok(open_id.to_owned()),
        Some(_) => Err(Error::Invalid(
            "open_id must be 28 letters, digits, - or _, the first an o".to_owned(),
        )),
    }
}

/// The first name, at any depth, that XML cannot carry.
fn misnamed(fields: &Map<String, Value>) -> Option<&str> {
    fields.iter().find_map(|(name, value)| match value {
        _ if !is_field_name(name) => Some(name.as_str()),
        Value::Object(children) => misnamed(children),
        Value::Array(items) => items.iter().filter_map(Value::as_object).find_map(misnamed),
        _ => None,
    })
}

fn view(account: &Account) -> AccountView {
    let users: Vec<_> = account
        .users()
        .map(|(open_id, user)| UserView {
            open_id: open_id.to_owned(),
            union_id: user.union_id.clone(),
            follows: user.follows,
        })
        .collect();
    AccountView {
        app_id: account.config.app_id.clone(),
        kind: account.config.kind,
        original_id: account.config.original_id.clone(),
        default_open_id: account.default_open_id(),
        users: users.into_iter().rev().take(100).rev().collect(),
    }
}
