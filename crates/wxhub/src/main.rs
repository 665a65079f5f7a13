//! The `wxhub` command: everything in one process to develop with, the demo, the migrations, and the operator's verbs.

mod account;
mod auth;
mod broadcast;
mod demo;
mod dev;
mod message;
mod migrate;
mod operator;
mod push;
mod secret;
mod send;
mod session;
mod table;
mod token;
mod user;
mod world;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use service_kit::cli;

/// The one gateway between a company's teams and WeChat: develop with it, see it work, look after it
#[derive(Debug, Parser)]
#[command(name = "wxhub", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    dev: Box<dev::Args>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a sandboxed WeChat and all three services in this process (what it does without a verb)
    Dev(Box<dev::Args>),
    /// Drive the whole story, step by step, against a running `wxhub dev` or one of its own
    Demo(demo::Args),
    /// Bring the tables of every service up to date
    Migrate(migrate::Args),
    /// Look after access tokens: list, get, refresh, watch
    Token(Box<token::Args>),
    /// Look after accounts: add, passwd, show, delete, unbind
    Account(Box<account::Args>),
    /// Look up users: list, show
    User(Box<user::Args>),
    /// Look after users' sessions: list, revoke
    Session(Box<session::Args>),
    /// Send a message to one user
    Send(Box<send::Args>),
    /// Send to a list of users: send, list, show, watch, pause, resume, cancel, report
    Broadcast(Box<broadcast::Args>),
    /// Look after messages: list, show, retry
    Message(Box<message::Args>),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return cli::usage(&error),
    };
    let ran = cli::runtime().and_then(|runtime| match cli.verb.unwrap_or(Verb::Dev(cli.dev)) {
        Verb::Dev(args) => runtime.block_on(dev::run(&args)),
        Verb::Demo(args) => runtime.block_on(demo::run(&args)),
        Verb::Migrate(args) => runtime.block_on(migrate::run(args)),
        Verb::Token(args) => runtime.block_on(token::run(*args)),
        Verb::Account(args) => runtime.block_on(account::run(*args)),
        Verb::User(args) => runtime.block_on(user::run(*args)),
        Verb::Session(args) => runtime.block_on(session::run(*args)),
        Verb::Send(args) => runtime.block_on(send::run(*args)),
        Verb::Broadcast(args) => runtime.block_on(broadcast::run(*args)),
        Verb::Message(args) => runtime.block_on(message::run(*args)),
    });
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = cli::fail("wxhub", &error);
            let refused = error.downcast_ref().map(token::Refused::exit_code);
            let interrupted = error.downcast_ref().map(broadcast::Interrupted::exit_code);
            refused.or(interrupted).unwrap_or(code)
        }
    }
}
