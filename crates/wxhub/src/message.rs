//! `wxhub message`: what an operator asks of a running push-service about messages.

mod shown;

use anyhow::Context as _;
use proto::push::v1::{GetMessageRequest, push_service_client::PushServiceClient};
use service_kit::{client::PeerChannel, telemetry};

use crate::{
    operator::{self, print},
    push::{Connection, refused},
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
    /// One message with all its attempts and times (scope push.read)
    Show {
        /// The message_id that SendMessage returned
        #[arg(value_name = "MESSAGE_ID")]
        message_id: String,
    },
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    telemetry::install_tls_provider();
    let mut operator = Operator {
        rpc: args.connection.open()?,
        json: args.json,
    };
    operator::outcome(match args.verb {
        Verb::Show { message_id } => operator.show(message_id).await,
    })
}

/// Asks push-service, and prints what it answers.
struct Operator {
    rpc: PushServiceClient<PeerChannel>,
    json: bool,
}

impl Operator {
    async fn show(&mut self, message_id: String) -> anyhow::Result<()> {
        let answer = self.rpc.get_message(GetMessageRequest { message_id }).await;
        let message = answer.map_err(refused)?.into_inner().message;
        let message = message.context("push-service's answer has no message")?;
        print(&if self.json {
            shown::object(&message).to_string()
        } else {
            shown::details(&message)
        })
    }
}
