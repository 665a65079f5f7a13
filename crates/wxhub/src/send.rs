//! `wxhub send`: a message to one user.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{Context as _, bail};
use proto::push::v1::{
    GetMessageRequest, Message, MessageState, SendMessageRequest,
    push_service_client::PushServiceClient,
};
use service_kit::{Clock, client::PeerChannel, run, telemetry};

use crate::{
    message::shown,
    operator::{self, print},
    push::{Connection, Content, ContentArgs, When, refused},
};

/// Between two looks at a message that is followed: at first, and later on.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 accepted, or with --wait sent; 1 refused, or with --wait not sent; 64 wrong flags or settings; 75 not now, the same command may work later. With a --request-id it sends one message, however often it is made: give --schedule and --expire as times then, for a distance from now is another time each time.")]
pub(crate) struct Args {
    /// The app that speaks, by app_id or name
    #[arg(long)]
    app: String,
    #[command(flatten)]
    recipient: Recipient,
    #[command(flatten)]
    content: ContentArgs,
    /// The same id sends one message, however often the same command is made; --schedule and --expire as times, not as
    /// distances
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// Send it then: 2026-11-21T18:00:00+08:00, or 10m from now
    #[arg(long, value_name = "TIME")]
    schedule: Option<When>,
    /// Of no use after this: a time, or a distance from now
    #[arg(long, value_name = "TIME")]
    expire: Option<When>,
    /// Follow it until WeChat took it or it is given up
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    connection: Connection,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Recipient {
    /// The user, by the app's openid
    #[arg(long)]
    open_id: Option<String>,
    /// The user, by the account that is bound to the app
    #[arg(long)]
    account: Option<String>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    telemetry::install_tls_provider();
    operator::outcome(send(args).await)
}

async fn send(args: Args) -> anyhow::Result<()> {
    let mut rpc = args.connection.open()?;
    let now = Clock::System.now();
    let request = SendMessageRequest {
        app_id: args.app,
        open_id: args.recipient.open_id.unwrap_or_default(),
        account: args.recipient.account.unwrap_or_default(),
        request_id: args.request_id.unwrap_or_default(),
        content: Some(Content::from(args.content).into()),
        schedule_time: args.schedule.map(|time| time.ahead(now)),
        expire_time: args.expire.map(|time| time.ahead(now)),
    };
    let answer = rpc.send_message(request).await.map_err(refused)?;
    let message = answer.into_inner().message;
    let mut message = message.context("push-service's answer has no message")?;
    if args.wait {
        let stop = run::shutdown_on_signal()?;
        let followed = stop.run_until_cancelled(follow(&mut rpc, &mut message));
        if let Some(followed) = followed.await {
            followed?;
        }
    }
    print(&if args.json {
        shown::object(&message).to_string()
    } else {
        shown::details(&message)
    })?;
    if args.wait
        && !matches!(
            message.state(),
            MessageState::Sent | MessageState::Delivered
        )
    {
        bail!("the message is {}", shown::state(&message));
    }
    Ok(())
}

/// Looks at it until it waits no more, and tells each change.
async fn follow(
    rpc: &mut PushServiceClient<PeerChannel>,
    message: &mut Message,
) -> anyhow::Result<()> {
    let mut told = None;
    let mut pause = FIRST_LOOK;
    while waits(message) {
        let standing = (message.state(), message.attempts);
        if told.replace(standing) != Some(standing) {
            let now = Clock::System.now();
            writeln!(io::stderr(), "wxhub: {}", shown::standing(message, now))?;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK);
        let request = GetMessageRequest {
            message_id: message.message_id.clone(),
        };
        match rpc.get_message(request).await.map_err(refused) {
            Ok(answer) => {
                let found = answer.into_inner().message;
                *message = found.context("push-service's answer has no message")?;
            }
            Err(away) if away.is_temporary() => {}
            Err(refused) => return Err(refused.into()),
        }
    }
    Ok(())
}

fn waits(message: &Message) -> bool {
    matches!(
        message.state(),
        MessageState::Scheduled | MessageState::Queued | MessageState::Sending
    )
}
