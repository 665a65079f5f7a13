//! `wxhub session`: a user's sessions, and how an operator ends them.

use std::time::SystemTime;

use proto::auth::v1::{
    ListUserSessionsRequest, RevokeAppSessionsRequest, RevokeSessionRequest,
    RevokeUserSessionsRequest, SessionInfo, auth_service_client::AuthServiceClient,
};
use serde_json::{Value, json};
use service_kit::{Clock, client::PeerChannel, telemetry};

use crate::{
    auth::{Connection, refused},
    operator::{self, print},
    table::{aligned, from, rfc_3339, to_the_second},
};

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
    /// A user's sessions, the latest first: nothing that is shown proves one (scope auth.read)
    List {
        /// wxhub's id of the user
        #[arg(value_name = "USER_ID")]
        user_id: String,
    },
    /// End one session (scope auth.verify), or all of a user or an app (scope auth.write): within a second everywhere
    Revoke {
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// The session, by its id in `list`
    #[arg(value_name = "SESSION_ID")]
    session_id: Option<String>,
    /// Every session of this user, by wxhub's id
    #[arg(long, value_name = "USER_ID")]
    user: Option<String>,
    /// Every session of every user with this app, by app_id or name
    #[arg(long)]
    app: Option<String>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    telemetry::install_tls_provider();
    let rpc = args.connection.open()?;
    operator::outcome(match args.verb {
        Verb::List { user_id } => list(rpc, user_id, args.json).await,
        Verb::Revoke { which } => revoke(rpc, which, args.json).await,
    })
}

/// Every page.
async fn list(
    mut rpc: AuthServiceClient<PeerChannel>,
    user_id: String,
    json: bool,
) -> anyhow::Result<()> {
    let mut sessions = Vec::new();
    let mut request = ListUserSessionsRequest {
        user_id,
        ..ListUserSessionsRequest::default()
    };
    loop {
        let page = rpc.list_user_sessions(request.clone()).await;
        let page = page.map_err(refused)?.into_inner();
        sessions.extend(page.sessions);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    print(&if json {
        Value::from_iter(sessions.iter().map(object)).to_string()
    } else {
        table(&sessions, Clock::System.now())
    })
}

async fn revoke(
    mut rpc: AuthServiceClient<PeerChannel>,
    which: Which,
    json: bool,
) -> anyhow::Result<()> {
    let (revoked, told) = match which {
        Which {
            user: Some(user_id),
            ..
        } => {
            let told = json!({ "user_id": user_id });
            let request = RevokeUserSessionsRequest { user_id };
            let answer = rpc.revoke_user_sessions(request).await;
            (answer.map(drop), told)
        }
        Which {
            app: Some(app_id), ..
        } => {
            let told = json!({ "app_id": app_id });
            let request = RevokeAppSessionsRequest { app_id };
            let answer = rpc.revoke_app_sessions(request).await;
            (answer.map(drop), told)
        }
        Which { session_id, .. } => {
            let request = RevokeSessionRequest {
                session_id: session_id.unwrap_or_default(),
                ..RevokeSessionRequest::default()
            };
            let told = json!({ "session_id": request.session_id });
            (rpc.revoke_session(request).await.map(drop), told)
        }
    };
    revoked.map_err(refused)?;
    print(&if json {
        json!({ "revoked": told }).to_string()
    } else {
        "revoked".to_owned()
    })
}

fn object(session: &SessionInfo) -> Value {
    json!({
        "session_id": session.session_id,
        "app_id": session.app_id,
        "create_time": rfc_3339(session.create_time),
        "last_seen_time": rfc_3339(session.last_seen_time),
        "expire_time": rfc_3339(session.expire_time),
        "client": session.client,
    })
}

fn table(sessions: &[SessionInfo], now: SystemTime) -> String {
    let head = [
        "SESSION_ID",
        "APP_ID",
        "CREATED",
        "LAST SEEN",
        "EXPIRES",
        "CLIENT",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(sessions.iter().map(|session| {
        vec![
            session.session_id.clone(),
            session.app_id.clone(),
            to_the_second(session.create_time),
            from(now, session.last_seen_time),
            from(now, session.expire_time),
            // A device worded it.
            session.client.replace(char::is_control, " "),
        ]
    }));
    aligned(&rows)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn sessions_stand_in_columns_and_keep_to_their_line() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let session = SessionInfo {
            session_id: "abc".to_owned(),
            app_id: "wx1".to_owned(),
            create_time: Some((now - Duration::from_secs(90)).into()),
            last_seen_time: Some((now - Duration::from_secs(5)).into()),
            expire_time: Some((now + Duration::from_secs(7 * 86_400)).into()),
            client: "Mozilla\n\u{1b}[2J".to_owned(),
        };
        assert_eq!(
            table(&[session], now),
            "\
SESSION_ID  APP_ID  CREATED               LAST SEEN  EXPIRES   CLIENT
abc         wx1     1970-01-12T13:45:10Z  5s ago     in 7d00h  Mozilla  [2J"
        );
    }
}
