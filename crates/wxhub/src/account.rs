//! `wxhub account`: accounts that sign in with name and password to be bound to their WeChat user.
//!
//! A password is asked for without echo, twice, or is the first line of a stdin that is no terminal. It is never an
//! argument: those are seen by everybody on the machine, and kept in a shell's history.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _};

use anyhow::{Context as _, bail};
use proto::auth::v1::{
    self as wire, Binding, CreateAccountRequest, DeleteAccountRequest, DeleteBindingRequest,
    GetAccountRequest, SetAccountPasswordRequest,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use service_kit::telemetry;

use crate::{
    auth::{Connection, refused},
    operator::{self, print},
    table::{aligned, rfc_3339, to_the_second},
};

/// Bytes of the longest line that is read as a password: more than any password has.
const LINE_MAX: u64 = 4 * 1024;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The password is asked for, or read from the first line of stdin where that is no terminal.

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
    /// Make an account (scope auth.write, all apps)
    Add(Account),
    /// Give an account another password, and sign it out (scope auth.write, all apps)
    Passwd(Account),
    /// An account with the WeChat users bound to it (scope auth.read)
    Show(Account),
    /// Remove an account and its bindings; one that is unknown is no error (scope auth.write, all apps)
    Delete(Account),
    /// Unbind an account in an official account; one that is not bound is no error (scope auth.write)
    Unbind {
        #[command(flatten)]
        account: Account,
        /// The official account, by app_id or name
        #[arg(long, value_name = "APP")]
        app: String,
    },
}

#[derive(Debug, clap::Args)]
struct Account {
    /// The account's name
    #[arg(value_name = "ACCOUNT")]
    account: String,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    telemetry::install_tls_provider();
    operator::outcome(act(args).await)
}

async fn act(args: Args) -> anyhow::Result<()> {
    let json = args.json;
    let mut rpc = args.connection.open()?;
    match args.verb {
        Verb::Add(Account { account }) => {
            let password = password()?.expose_secret().to_owned();
            let request = CreateAccountRequest { account, password };
            let answer = rpc.create_account(request).await.map_err(refused)?;
            show(answer.into_inner().account, json)
        }
        Verb::Passwd(Account { account }) => {
            let password = password()?.expose_secret().to_owned();
            let request = SetAccountPasswordRequest { account, password };
            let answer = rpc.set_account_password(request).await.map_err(refused)?;
            show(answer.into_inner().account, json)
        }
        Verb::Show(Account { account }) => {
            let request = GetAccountRequest { account };
            let answer = rpc.get_account(request).await.map_err(refused)?;
            show(answer.into_inner().account, json)
        }
        Verb::Delete(Account { account }) => {
            let request = DeleteAccountRequest { account };
            rpc.delete_account(request).await.map_err(refused)?;
            Ok(())
        }
        Verb::Unbind {
            account: Account { account },
            app,
        } => {
            let request = DeleteBindingRequest {
                app_id: app,
                account,
            };
            rpc.delete_binding(request).await.map_err(refused)?;
            Ok(())
        }
    }
}

/// Asks for a new password, or reads it.
fn password() -> anyhow::Result<SecretString> {
    if io::stdin().is_terminal() {
        let password = rpassword::prompt_password("Password: ").context("cannot ask for it")?;
        let again = rpassword::prompt_password("Again: ").context("cannot ask for it")?;
        if password != again {
            bail!("the two passwords differ");
        }
        return Ok(password.into());
    }
    let mut line = String::new();
    io::stdin()
        .lock()
        .take(LINE_MAX)
        .read_line(&mut line)
        .context("the password on stdin cannot be read")?;
    let password = line.strip_suffix('\n').unwrap_or(&line);
    let password = password.strip_suffix('\r').unwrap_or(password);
    Ok(password.into())
}

fn show(account: Option<wire::Account>, json: bool) -> anyhow::Result<()> {
    let account = account.context("auth-service's answer has no account")?;
    print(&if json {
        in_json(&account).to_string()
    } else {
        in_lines(&account)
    })
}

fn in_json(account: &wire::Account) -> Value {
    let binding = |binding: &Binding| {
        json!({
            "app_id": binding.app_id,
            "open_id": binding.open_id,
            "nickname": binding.nickname,
            "create_time": rfc_3339(binding.create_time),
        })
    };
    json!({
        "account": account.account,
        "create_time": rfc_3339(account.create_time),
        "password_time": rfc_3339(account.password_time),
        "bindings": account.bindings.iter().map(binding).collect::<Vec<_>>(),
    })
}

fn in_lines(account: &wire::Account) -> String {
    let mut rows = vec![
        vec!["account".to_owned(), account.account.clone()],
        vec!["made".to_owned(), to_the_second(account.create_time)],
        vec!["password".to_owned(), to_the_second(account.password_time)],
    ];
    rows.extend(account.bindings.iter().map(|binding| {
        let bound = [
            binding.app_id.clone(),
            binding.open_id.clone(),
            // It is whatever its owner likes: no line break of theirs is one of ours.
            format!("{:?}", binding.nickname),
            to_the_second(binding.create_time),
        ];
        vec!["bound".to_owned(), bound.join("  ")]
    }));
    aligned(&rows)
}

#[cfg(test)]
mod tests {
    use prost_types::Timestamp;

    use super::*;

    #[test]
    fn an_account_is_shown_with_its_bindings() {
        let time = Some(Timestamp {
            seconds: 1_795_000_000,
            nanos: 5,
        });
        let account = wire::Account {
            account: "wang".to_owned(),
            create_time: time,
            password_time: time,
            bindings: vec![Binding {
                account: "wang".to_owned(),
                app_id: "wx2".to_owned(),
                open_id: "oABC".to_owned(),
                nickname: "小\n明".to_owned(),
                create_time: time,
            }],
        };
        assert_eq!(
            in_lines(&account),
            "account   wang\n\
             made      2026-11-18T11:06:40Z\n\
             password  2026-11-18T11:06:40Z\n\
             bound     wx2  oABC  \"小\\n明\"  2026-11-18T11:06:40Z"
        );
        assert_eq!(in_json(&account)["bindings"][0]["open_id"], "oABC");
    }
}
