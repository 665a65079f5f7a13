//! The story: one step after the other, each checked.

use std::{collections::HashMap, fmt::Debug, time::Duration};

use anyhow::{Context as _, bail, ensure};
use proto::{
    auth::v1::VerifySessionRequest,
    push::v1::{
        CustomerContent, CustomerText, FormTemplateContent, GetMessageRequest, Message,
        MessageState, SendMessageRequest, TemplateContent, customer_content,
        send_message_request::Content,
    },
    token::v1::{
        AccessToken, GetAccessTokenRequest, GetTicketRequest, JsapiSignature, SignJsapiRequest,
        TicketType,
    },
};
use reqwest::header::AUTHORIZATION;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tonic::{Response, Status};

use super::{report::Report, wire::Wire};
use crate::{
    secret::shortened,
    world::{NEWS, PAGE_HOST, SHOP},
};

/// A message is sent within this.
const SEND_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two looks at a message.
const SEND_POLL: Duration = Duration::from_millis(50);
/// The two interfaces that give access_tokens.
const TOKEN_INTERFACES: [&str; 2] = ["/cgi-bin/token", "/cgi-bin/stable_token"];

pub(super) struct Story<'a> {
    wire: &'a Wire,
    report: &'a mut Report,
    /// Tells this run's messages from those of others.
    order: String,
}

/// A message that was accepted for a user.
struct Pushed {
    app_id: &'static str,
    kind: &'static str,
    message: Message,
}

impl<'a> Story<'a> {
    pub(super) fn new(wire: &'a Wire, report: &'a mut Report) -> Self {
        Self {
            wire,
            report,
            order: format!("{:08X}", rand::random::<u32>()),
        }
    }

    pub(super) async fn tell(mut self) -> anyhow::Result<()> {
        let (session, buyer) = self.log_in().await?;
        self.verify(&session, &buyer).await?;
        self.fetch_token_twice().await?;
        self.sign_page().await?;
        let follower = self.follow().await?;
        let pushed = [
            self.push_template(&follower).await?,
            self.push_form(&buyer).await?,
            self.push_text(&follower).await?,
        ];
        self.read_inbox(&pushed).await?;
        self.write_to_account(&follower).await
    }

    async fn log_in(&mut self) -> anyhow::Result<(String, String)> {
        self.report
            .begin("A phone logs in to the mini program `shop` with a js_code")?;
        let login = self
            .wire
            .sandbox_post("/sandbox/login", &json!({"app_id": SHOP}))
            .await?;
        let (js_code, open_id) = (text(&login, "/js_code")?, text(&login, "/open_id")?);
        self.report.saw(
            "wx.login on the phone",
            format!("js_code {}", shortened(js_code)),
        )?;
        let answer = self
            .wire
            .post_auth("/login", &json!({"app_id": "shop", "js_code": js_code}))
            .await?;
        let status = answer.status().as_u16();
        let header = answer.headers().get(AUTHORIZATION).cloned();
        expect("the status of POST /login", &204, &status)
            .with_context(|| format!("x-request-id {:?}", answer.headers().get("x-request-id")))?;
        let session =
            header.context("POST /login: expected a session token in Authorization, got none")?;
        let session = session
            .to_str()
            .context("the session token is no text")?
            .to_owned();
        self.report.saw(
            "POST /login",
            format!("204, session {}", shortened(&session)),
        )?;
        Ok((session, open_id.to_owned()))
    }

    async fn verify(&mut self, session: &str, open_id: &str) -> anyhow::Result<()> {
        self.report
            .begin("A team's backend asks over gRPC whose session that is")?;
        let request = VerifySessionRequest {
            session_token: session.to_owned(),
        };
        let mut client = self.wire.auth.clone();
        let verified = answer(client.verify_session(request)).await?;
        let user = verified.user.context("expected a user, got none")?;
        expect("app_id", &SHOP, &verified.app_id.as_str())?;
        expect("open_id", &open_id, &user.open_id.as_str())?;
        let told = format!(
            "user {}, open_id {} of {}",
            user.user_id, user.open_id, verified.app_id
        );
        self.report.saw("AuthService/VerifySession", told)
    }

    async fn fetch_token_twice(&mut self) -> anyhow::Result<()> {
        self.report
            .begin("It fetches an access_token twice; WeChat is asked once at most")?;
        let before = self.token_calls().await?;
        let first = self.access_token().await?;
        let second = self.access_token().await?;
        let calls = self.token_calls().await? - before;
        expect(
            "the version of the second token",
            &first.version,
            &second.version,
        )?;
        ensure!(
            first.token == second.token,
            "expected the same token twice, got two"
        );
        ensure!(calls <= 1, "expected at most 1 call of WeChat, got {calls}");
        let why = if calls == 1 {
            "1 call: the first to ask fetched it, the second read it from memory"
        } else {
            "0 calls: token-service held it already"
        };
        self.report.saw("upstream calls for both", why)
    }

    async fn access_token(&mut self) -> anyhow::Result<AccessToken> {
        let request = GetAccessTokenRequest {
            app_id: "shop".to_owned(),
        };
        let mut client = self.wire.token.clone();
        let token = answer(client.get_access_token(request))
            .await?
            .access_token
            .context("expected an access_token, got none")?;
        expect("app_id", &SHOP, &token.app_id.as_str())?;
        ensure!(
            !token.token.is_empty(),
            "expected an access_token, got an empty one"
        );
        let told = format!(
            "version {}, token {}",
            token.version,
            shortened(&token.token)
        );
        self.report.saw("TokenService/GetAccessToken", told)?;
        Ok(token)
    }

    /// How often WeChat was asked for a token of the mini program.
    async fn token_calls(&self) -> anyhow::Result<u64> {
        let calls = self
            .wire
            .sandbox_get("/sandbox/calls", &[("app_id", SHOP)])
            .await?;
        let counts = calls.pointer("/counts").and_then(Value::as_object);
        let counts = counts.context("the sandbox told no counts")?;
        let outcomes = TOKEN_INTERFACES
            .iter()
            .filter_map(|path| counts.get(*path)?.as_object());
        Ok(outcomes
            .flat_map(|outcomes| outcomes.values())
            .filter_map(Value::as_u64)
            .sum())
    }

    async fn sign_page(&mut self) -> anyhow::Result<()> {
        self.report
            .begin("It signs a page of the official account `news` for JS-SDK")?;
        let url = format!("https://{PAGE_HOST}/orders/{}?from=demo", self.order);
        let request = SignJsapiRequest {
            app_id: "news".to_owned(),
            url: format!("{url}#paid"),
        };
        let mut client = self.wire.token.clone();
        let answered = answer(client.sign_jsapi(request)).await?;
        let signed: JsapiSignature = answered
            .jsapi_signature
            .context("expected a signature, got none")?;
        expect("the signed url", &url, &signed.url)?;
        let request = GetTicketRequest {
            app_id: "news".to_owned(),
            r#type: TicketType::Jsapi.into(),
        };
        let answered = answer(client.get_ticket(request)).await?;
        let ticket = answered
            .ticket
            .context("expected a jsapi_ticket, got none")?
            .ticket;
        let ticket = wechat::Ticket::new(ticket);
        let own = wechat::jsapi::sign(&ticket, &signed.nonce_str, signed.timestamp, &url);
        expect("the signature", &own, &signed.signature)?;
        self.report.saw(
            "TokenService/SignJsapi",
            format!("{} of {}", signed.signature, signed.url),
        )?;
        self.report.saw("the same, from the jsapi_ticket", own)
    }

    /// Lets the official account write to its user: template messages go to followers, customer-service messages to
    /// those who did something a short while ago.
    async fn follow(&mut self) -> anyhow::Result<String> {
        self.report
            .begin("A user follows `news`; WeChat tells push-service's callback")?;
        let delivery = self
            .deliver(&json!({"app_id": NEWS, "event": "subscribe"}))
            .await?;
        self.report.saw(
            "POST /callback/news (subscribe)",
            format!("{}, {}", at(&delivery, "/status"), at(&delivery, "/reply")),
        )?;
        Ok(text(&delivery, "/open_id")?.to_owned())
    }

    async fn push_template(&mut self, open_id: &str) -> anyhow::Result<Pushed> {
        self.report
            .begin("A team pushes a template message to that user")?;
        let content = TemplateContent {
            template_id: "TEMPLATE_ORDER_PAID".to_owned(),
            url: format!("https://{PAGE_HOST}/orders/{}", self.order),
            data: data([
                ("thing1", &format!("订单 {}", self.order)),
                ("amount2", "¥12.50"),
                ("time3", "2026-11-21 10:00"),
            ]),
            ..TemplateContent::default()
        };
        self.push(NEWS, "template", open_id, Content::Template(content))
            .await
    }

    async fn push_form(&mut self, open_id: &str) -> anyhow::Result<Pushed> {
        self.report
            .begin("The buyer submits a form; a team spends its form_id on a message")?;
        let form = self
            .wire
            .sandbox_post(
                "/sandbox/form",
                &json!({"app_id": SHOP, "open_id": open_id}),
            )
            .await?;
        let form_id = text(&form, "/form_id")?;
        self.report.saw(
            "<form report-submit>",
            format!("form_id {}", shortened(form_id)),
        )?;
        let content = FormTemplateContent {
            template_id: "FORM_ORDER_PAID".to_owned(),
            page: "pages/order/detail".to_owned(),
            form_id: form_id.to_owned(),
            data: data([
                ("keyword1", &self.order),
                ("keyword2", "¥12.50"),
                ("keyword3", "已付款"),
            ]),
            ..FormTemplateContent::default()
        };
        self.push(
            SHOP,
            "form_template",
            open_id,
            Content::FormTemplate(content),
        )
        .await
    }

    async fn push_text(&mut self, open_id: &str) -> anyhow::Result<Pushed> {
        self.report.begin("A team pushes a customer-service text")?;
        let text = CustomerText {
            content: format!("订单 {} 有什么可以帮您？", self.order),
        };
        let message = Some(customer_content::Message::Text(text));
        let content = CustomerContent {
            message,
            ..CustomerContent::default()
        };
        self.push(NEWS, "customer", open_id, Content::Customer(content))
            .await
    }

    /// Sends and waits until WeChat has it.
    async fn push(
        &mut self,
        app_id: &'static str,
        kind: &'static str,
        open_id: &str,
        content: Content,
    ) -> anyhow::Result<Pushed> {
        let request = SendMessageRequest {
            app_id: app_id.to_owned(),
            open_id: open_id.to_owned(),
            request_id: format!("demo-{}-{kind}", self.order),
            content: Some(content),
            ..SendMessageRequest::default()
        };
        let mut client = self.wire.push.clone();
        let answered = answer(client.send_message(request)).await?;
        let mut message = answered.message.context("expected a message, got none")?;
        let accepted = format!("message {} is {}", message.message_id, state(&message));
        self.report.saw("PushService/SendMessage", accepted)?;
        let deadline = Instant::now() + SEND_TIMEOUT;
        while !matches!(
            message.state(),
            MessageState::Sent | MessageState::Delivered
        ) {
            let over = matches!(
                message.state(),
                MessageState::Failed | MessageState::Cancelled | MessageState::Expired
            );
            if over || Instant::now() > deadline {
                bail!(
                    "expected SENT, got {} after {} attempts: {} {}",
                    state(&message),
                    message.attempts,
                    message.errcode,
                    message.errmsg
                );
            }
            sleep(SEND_POLL).await;
            let request = GetMessageRequest {
                message_id: message.message_id,
            };
            let answered = answer(client.get_message(request)).await?;
            message = answered.message.context("expected a message, got none")?;
        }
        // Customer-service messages get no id from WeChat.
        let id = Some(&message.wechat_msg_id).filter(|id| !id.is_empty());
        let id = id.map_or(String::new(), |id| format!(", WeChat's id {id}"));
        let sent = format!("{}, attempts: {}{id}", state(&message), message.attempts);
        self.report.saw("PushService/GetMessage", sent)?;
        Ok(Pushed {
            app_id,
            kind,
            message,
        })
    }

    async fn read_inbox(&mut self, pushed: &[Pushed]) -> anyhow::Result<()> {
        self.report
            .begin("The users look at their phones: all three are there")?;
        for Pushed {
            app_id,
            kind,
            message,
        } in pushed
        {
            let query = [("app_id", *app_id), ("open_id", message.open_id.as_str())];
            let inbox = self.wire.sandbox_get("/sandbox/inbox", &query).await?;
            let messages = inbox.pointer("/messages").and_then(Value::as_array);
            let mine: Vec<&Value> = messages
                .into_iter()
                .flatten()
                .filter(|received| {
                    at(received, "/kind").as_str() == Some(*kind)
                        && at(received, "/content").to_string().contains(&self.order)
                })
                .collect();
            let [received] = mine.as_slice() else {
                bail!(
                    "expected one {kind} message about order {}, got {}",
                    self.order,
                    mine.len()
                );
            };
            if !message.wechat_msg_id.is_empty() {
                expect(
                    "WeChat's id of it",
                    &message.wechat_msg_id.as_str(),
                    &text(received, "/msgid")?,
                )?;
            }
            self.report.saw(
                &format!("inbox, {kind}"),
                at(received, "/content").to_string(),
            )?;
        }
        Ok(())
    }

    async fn write_to_account(&mut self, open_id: &str) -> anyhow::Result<()> {
        self.report
            .begin("A user writes to `news`; the callback answers within WeChat's five seconds")?;
        let push = json!({"app_id": NEWS, "open_id": open_id, "content": QUESTION});
        let delivery = self.deliver(&push).await?;
        let received = format!("{QUESTION:?} in, {} out", at(&delivery, "/status"));
        self.report.saw("POST /callback/news (text)", received)?;
        expect(
            "the type of the passive reply",
            &"text",
            &text(&delivery, "/reply/msg_type")?,
        )?;
        expect(
            "whether the reply is encrypted",
            &&json!(true),
            &at(&delivery, "/reply/encrypted"),
        )?;
        let reply = text(&delivery, "/reply/content")?;
        ensure!(
            !reply.is_empty(),
            "expected a passive reply, got an empty one"
        );
        self.report
            .saw("the passive reply", format!("{reply:?}, encrypted"))
    }

    /// Lets WeChat deliver to the callback.
    async fn deliver(&self, push: &Value) -> anyhow::Result<Value> {
        let delivery = self.wire.sandbox_post("/sandbox/deliver", push).await?;
        let judged = at(&delivery, "/problem");
        ensure!(
            judged.is_null(),
            "expected an answer that WeChat accepts, got: {judged} (HTTP {})",
            at(&delivery, "/status")
        );
        Ok(delivery)
    }
}

/// What the user writes in the last step.
const QUESTION: &str = "你好";

fn expect<T: PartialEq + Debug>(what: &str, expected: &T, got: &T) -> anyhow::Result<()> {
    ensure!(
        expected == got,
        "{what}: expected {expected:?}, got {got:?}"
    );
    Ok(())
}

/// What an RPC answers.
async fn answer<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> anyhow::Result<T> {
    match call.await {
        Ok(response) => Ok(response.into_inner()),
        Err(status) => bail!("expected OK, got {:?}: {}", status.code(), status.message()),
    }
}

/// What stands there, or null.
fn at<'v>(value: &'v Value, pointer: &str) -> &'v Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

fn text<'v>(value: &'v Value, pointer: &str) -> anyhow::Result<&'v str> {
    let found = at(value, pointer).as_str();
    found.with_context(|| format!("expected a text at {pointer}, got {value}"))
}

fn data<const N: usize>(pairs: [(&str, &str); N]) -> HashMap<String, String> {
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn state(message: &Message) -> &'static str {
    message
        .state()
        .as_str_name()
        .trim_start_matches("MESSAGE_STATE_")
}
