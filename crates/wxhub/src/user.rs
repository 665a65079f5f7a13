//! `wxhub user`: what an operator asks of a running auth-service about users.

use std::io::{self, Write as _};

use anyhow::Context as _;
use proto::auth::v1::{
    GetUserRequest, ListUsersRequest, User, auth_service_client::AuthServiceClient,
};
use serde_json::{Value, json};
use service_kit::{client::PeerChannel, telemetry};

use crate::{
    auth::{Connection, refused},
    operator::{self, print},
    table::{aligned, rfc_3339, to_the_second},
};

/// Users that one request lists at most.
const PAGE: usize = 1_000;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 done; 1 refused; 64 wrong flags or settings; 75 not now, the same command may work later.")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
    #[command(flatten)]
    connection: Connection,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Users in order of their first login: an app's, or one person's in every app (scope auth.read)
    List {
        #[command(flatten)]
        whose: Whose,
        /// Print this many at most
        #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// One user (scope auth.read)
    Show {
        /// wxhub's id of the user
        #[arg(value_name = "USER_ID", required_unless_present = "open_id", conflicts_with_all = ["app", "open_id"])]
        user_id: Option<String>,
        /// The app, by app_id or name
        #[arg(long, requires = "open_id")]
        app: Option<String>,
        /// WeChat's id of the user within that app
        #[arg(long, requires = "app")]
        open_id: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Whose {
    /// The app, by app_id or name
    #[arg(long)]
    app: Option<String>,
    /// WeChat's id of a person across the apps of one company
    #[arg(long)]
    union_id: Option<String>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    telemetry::install_tls_provider();
    let mut operator = Operator {
        rpc: args.connection.open()?,
        json: args.json,
    };
    operator::outcome(match args.verb {
        Verb::List { whose, limit } => operator.list(whose, limit).await,
        Verb::Show {
            user_id,
            app,
            open_id,
        } => {
            let request = GetUserRequest {
                user_id: user_id.unwrap_or_default(),
                app_id: app.unwrap_or_default(),
                open_id: open_id.unwrap_or_default(),
            };
            operator.show(request).await
        }
    })
}

/// Asks auth-service, and prints what it answers.
struct Operator {
    rpc: AuthServiceClient<PeerChannel>,
    json: bool,
}

impl Operator {
    async fn list(&mut self, whose: Whose, limit: u32) -> anyhow::Result<()> {
        let limit = usize::try_from(limit)?;
        let mut users = Vec::new();
        let mut request = ListUsersRequest {
            app_id: whose.app.unwrap_or_default(),
            union_id: whose.union_id.unwrap_or_default(),
            ..ListUsersRequest::default()
        };
        loop {
            let size = PAGE.min(limit - users.len());
            request.page_size = i32::try_from(size)?;
            let page = self.rpc.list_users(request.clone()).await;
            let page = page.map_err(refused)?.into_inner();
            users.extend(page.users);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() || users.len() >= limit {
                break;
            }
        }
        print(&if self.json {
            Value::from_iter(users.iter().map(object)).to_string()
        } else {
            table(&users)
        })?;
        if !request.page_token.is_empty() {
            writeln!(io::stderr(), "wxhub: there are more: --limit shows them")?;
        }
        Ok(())
    }

    async fn show(&mut self, request: GetUserRequest) -> anyhow::Result<()> {
        let answer = self.rpc.get_user(request).await;
        let user = answer.map_err(refused)?.into_inner().user;
        let user = user.context("auth-service's answer has no user")?;
        print(&if self.json {
            object(&user).to_string()
        } else {
            details(&user)
        })
    }
}

fn object(user: &User) -> Value {
    json!({
        "user_id": user.user_id,
        "app_id": user.app_id,
        "open_id": user.open_id,
        "union_id": user.union_id,
        "nickname": user.nickname,
        "create_time": rfc_3339(user.create_time),
        "last_login_time": rfc_3339(user.last_login_time),
    })
}

fn table(users: &[User]) -> String {
    let head = [
        "USER_ID",
        "APP_ID",
        "OPEN_ID",
        "UNION_ID",
        "FIRST LOGIN",
        "LAST LOGIN",
        "NICKNAME",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(users.iter().map(|user| {
        vec![
            user.user_id.clone(),
            user.app_id.clone(),
            user.open_id.clone(),
            or_dash(&user.union_id),
            to_the_second(user.create_time),
            to_the_second(user.last_login_time),
            // People chose it: the last column, since not every character is one wide.
            user.nickname.replace(char::is_control, " "),
        ]
    }));
    aligned(&rows)
}

fn details(user: &User) -> String {
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    aligned(&[
        row("user_id", user.user_id.clone()),
        row("app_id", user.app_id.clone()),
        row("open_id", user.open_id.clone()),
        row("union_id", or_dash(&user.union_id)),
        row("nickname", user.nickname.replace(char::is_control, " ")),
        row("first login", to_the_second(user.create_time)),
        row("last login", to_the_second(user.last_login_time)),
    ])
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_stand_in_columns_and_keep_to_their_line() {
        let user = |user_id: &str, union_id: &str, nickname: &str| User {
            user_id: user_id.to_owned(),
            app_id: "wx1".to_owned(),
            open_id: "oA".to_owned(),
            union_id: union_id.to_owned(),
            nickname: nickname.to_owned(),
            ..User::default()
        };
        let users = [user("1", "", "小\u{1b}明"), user("23", "oUnion", "")];
        assert_eq!(
            table(&users),
            "\
USER_ID  APP_ID  OPEN_ID  UNION_ID  FIRST LOGIN  LAST LOGIN  NICKNAME
1        wx1     oA       -         -            -           小 明
23       wx1     oA       oUnion    -            -"
        );
        let details = details(&users[0]);
        assert!(details.contains("\nnickname     小 明\n"), "{details}");
    }
}
