//! `wxhub broadcast`: what an operator types, against the push-service of a `wxhub dev`.

use std::{collections::HashMap, fmt::Write as _, fs, path::Path, time::Duration};

use proto::push::v1::{
    AddBroadcastRecipientsRequest, CreateBroadcastRequest, TemplateContent,
    create_broadcast_request::Content, push_service_client::PushServiceClient,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use test_support::{FaultProxy, Process, eventually};

use crate::{
    running::{Dev, SOON, from_caller},
    shell::{NEWS, Shell, TEMPLATE, follower},
};

/// A folder with one list.
struct List {
    folder: TempDir,
}

impl List {
    fn of(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("users.csv"), text).unwrap();
        Self { folder }
    }

    fn of_users<'a>(open_ids: impl IntoIterator<Item = &'a String>) -> Self {
        let mut text = "open_id\n".to_owned();
        for open_id in open_ids {
            writeln!(text, "{open_id}").unwrap();
        }
        Self::of(&text)
    }

    fn path(&self, name: &str) -> String {
        let path: &Path = self.folder.path();
        path.join(name).to_str().unwrap().to_owned()
    }

    /// `wxhub broadcast send` of this list.
    async fn send(&self, shell: &Shell, more: &[&str]) -> Value {
        shell.json(&self.command(more).texts()).await
    }

    fn command(&self, more: &[&str]) -> Command {
        let path = self.path("users.csv");
        let start = ["broadcast", "send", &path, "--app", "news"];
        let all = [&start[..], TEMPLATE.as_slice(), more].concat();
        Command(all.into_iter().map(str::to_owned).collect())
    }
}

struct Command(Vec<String>);

impl Command {
    fn texts(&self) -> Vec<&str> {
        self.0.iter().map(String::as_str).collect()
    }
}

async fn followers(dev: &Dev, count: usize) -> Vec<String> {
    let mut open_ids = Vec::new();
    for _ in 0..count {
        open_ids.push(follower(dev).await);
    }
    open_ids
}

/// Openids that WeChat does not know.
fn strangers(count: usize) -> Vec<String> {
    (0..count)
        .map(|nth| format!("oStranger{nth:019}"))
        .collect()
}

/// How many messages each user got.
async fn got(dev: &Dev) -> HashMap<String, usize> {
    let mut got = HashMap::new();
    for message in dev.inbox(NEWS).await {
        let open_id = message["open_id"].as_str().unwrap().to_owned();
        *got.entry(open_id).or_default() += 1;
    }
    got
}

fn each<'a>(
    open_ids: impl IntoIterator<Item = &'a String>,
    times: usize,
) -> HashMap<String, usize> {
    let each = open_ids.into_iter();
    each.map(|open_id| (open_id.clone(), times)).collect()
}

fn id(broadcast: &Value) -> &str {
    broadcast["broadcast_id"].as_str().unwrap()
}

async fn shown(shell: &Shell, broadcast_id: &str) -> Value {
    shell.json(&["broadcast", "show", broadcast_id]).await
}

#[tokio::test]
async fn a_list_is_sent_followed_and_reported() {
    let dev = Dev::start(&[], &[]).await;
    let shell = Shell::of(&dev);
    let users = followers(&dev, 3).await;
    let [one, two, three] = &users[..] else {
        panic!("{users:?}");
    };
    let stranger = &strangers(1)[0];
    // As a spreadsheet writes it, with one named twice.
    let list = List::of(&format!(
        "\u{feff}name,open_id\r\n小明,{one}\r\n\"Wang, W\",{two}\r\n\r\n,{stranger}\r\n小明,{one}\r\n,{three}\r\n"
    ));

    let checked = list.send(&shell, &["--dry-run"]).await;
    assert_eq!(
        (&checked["users"], &checked["dry_run"]),
        (&json!(5), &json!(true))
    );
    assert_eq!(
        shell.json(&["broadcast", "list", "--app", "news"]).await,
        json!([])
    );

    let failures = list.path("failures.csv");
    let command = list.command(&["--report", &failures, "--json"]);
    let (printed, said) = shell.ends(&command.texts(), 0).await;
    let sent: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(sent["request_id"], checked["request_id"]);
    assert_eq!(
        (&sent["state"], &sent["recipients"], &sent["failed"]),
        (&json!("FINISHED"), &json!(4), &json!(1)),
        "{sent}"
    );
    for line in [
        format!("wxhub: broadcast {} to 5 users", id(&sent)),
        "wxhub: 4 recipients: who is named more than once gets it once".to_owned(),
        "wxhub: FINISHED: 4 of 4, 1 failed".to_owned(),
        format!("wxhub: 1 message in {failures}"),
    ] {
        assert!(said.lines().any(|said| said == line), "{line}: {said}");
    }
    let report = fs::read_to_string(&failures).unwrap();
    let lines: Vec<_> = report.lines().collect();
    let [head, line] = lines[..] else {
        panic!("{report}");
    };
    assert_eq!(
        head,
        "open_id,message_id,state,errcode,reason,attempts,time"
    );
    assert!(
        line.starts_with(&format!("{stranger},")) && line.contains(",FAILED,40003,invalid openid"),
        "{line}"
    );
    let again = ["broadcast", "report", id(&sent)];
    assert_eq!(shell.prints(&again).await, report.trim_end());
    let object = shell.json(&again).await;
    assert_eq!(object["open_id"], json!(stranger));
    assert_eq!(got(&dev).await, each(&users, 1));

    // The same command sends nothing more, unless it says so.
    let (_, said) = shell.ends(&list.command(&[]).texts(), 0).await;
    assert!(said.contains("it was sent before"), "{said}");
    assert_eq!(got(&dev).await, each(&users, 1));
    let second = list.send(&shell, &["--again"]).await;
    assert_ne!(id(&second), id(&sent));
    assert_eq!(got(&dev).await, each(&users, 2));

    let listed = shell.json(&["broadcast", "list", "--app", NEWS]).await;
    let ids: Vec<_> = listed.as_array().unwrap().iter().map(id).collect();
    assert_eq!(ids, [id(&second), id(&sent)]);
    let table = shell
        .prints(&["broadcast", "list", "--app", "news", "--limit", "1"])
        .await;
    assert!(
        table.starts_with("BROADCAST_ID ") && table.lines().count() == 2,
        "{table}"
    );

    // Whoever failed can have another try.
    let retry = [
        "message",
        "retry",
        "--app",
        "news",
        "--broadcast",
        id(&sent),
        "--yes",
    ];
    let (retried, said) = shell.ends(&retry, 0).await;
    assert_eq!(retried, "1 message queued again");
    assert!(
        said.contains(&format!("wxhub broadcast watch {}", id(&sent))),
        "{said}"
    );
    let watched = shell.prints(&["broadcast", "watch", id(&sent)]).await;
    assert!(watched.contains("\nstate         FINISHED\n"), "{watched}");
}

/// The command dies at each step of its conversation with push-service, and is made again each time.
#[tokio::test]
async fn a_send_that_dies_at_any_step_goes_on_and_sends_nobody_twice() {
    let dev = Dev::start(&[], &[]).await;
    let direct = Shell::of(&dev);
    let users = followers(&dev, 20).await;
    let list = List::of_users(&users);
    let mut died = 0;
    let last = loop {
        let proxy = FaultProxy::start(&direct.url).await;
        let shell = Shell {
            url: proxy.url(&direct.url),
        };
        proxy.stall_after(2 * died);
        let sending = shell.start(&list.command(&["--json"]).texts());
        tokio::select! {
            () = proxy.stalled() => sending.kill(),
            ended = sending.wait(SOON) => {
                assert_eq!(ended.code(), Some(0), "{:#?}", sending.stderr());
                break sending.stdout().join("\n");
            }
        }
        died += 1;
    };
    assert!(died > 3, "{died}");
    let last: Value = serde_json::from_str(&last).unwrap();
    assert_eq!(last["recipients"], json!(20), "{last}");
    assert_eq!(got(&dev).await, each(&users, 1));
    let listed = direct.json(&["broadcast", "list", "--app", "news"]).await;
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
}

/// `wxhub broadcast send --detach` of a long list, held when a part of it is stored, and its broadcast.
async fn amid_the_upload(
    list: &List,
    proxy: &FaultProxy,
    shell: &Shell,
    direct: &Shell,
) -> (Process, String) {
    proxy.delay(Duration::from_millis(100));
    let sending = shell.start(&list.command(&["--detach", "--json"]).texts());
    let line = sending.line("wxhub: broadcast ", SOON).await;
    let broadcast_id = line.split(' ').nth(2).unwrap().to_owned();
    eventually("a part of the list is stored", SOON, async || {
        let draft = shown(direct, &broadcast_id).await;
        assert_eq!(draft["state"], json!("DRAFT"));
        match draft["recipients"].as_u64() {
            Some(1..) => Ok(()),
            _ => Err(draft),
        }
    })
    .await;
    proxy.stall();
    (sending, broadcast_id)
}

#[tokio::test]
async fn an_upload_that_is_interrupted_goes_on_where_it_was() {
    let dev = Dev::start(&[], &[]).await;
    let direct = Shell::of(&dev);
    let list = List::of_users(&strangers(25_000));
    let proxy = FaultProxy::start(&direct.url).await;
    let shell = Shell {
        url: proxy.url(&direct.url),
    };
    let (sending, broadcast_id) = amid_the_upload(&list, &proxy, &shell, &direct).await;
    sending.interrupt();
    assert_eq!(sending.wait(SOON).await.code(), Some(75));
    let said = sending.stderr().join("\n");
    assert!(
        said.contains(&format!("wxhub broadcast cancel {broadcast_id}")),
        "{said}"
    );
    let draft = shown(&direct, &broadcast_id).await;
    assert_eq!(draft["state"], json!("DRAFT"), "{said}");

    // What is on its way may still arrive: the rest goes on top of it.
    let (printed, said) = direct
        .ends(&list.command(&["--detach", "--json"]).texts(), 0)
        .await;
    assert!(said.contains(" users uploaded before"), "{said}");
    let started: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(id(&started), id(&draft));
    assert_eq!(
        (&started["state"], &started["recipients"]),
        (&json!("RUNNING"), &json!(25_000))
    );

    proxy.heal().await;
    let watching = shell.start(&["broadcast", "watch", id(&draft), "--json"]);
    watching.line("\"RUNNING\"", SOON).await;
    // Push-service goes away and comes back.
    proxy.cut().await;
    watching.line("watching again", SOON).await;
    proxy.heal().await;
    let paused = direct.json(&["broadcast", "pause", id(&draft)]).await;
    assert_eq!(paused["state"], json!("PAUSED"));
    watching.line("\"PAUSED\"", SOON).await;
    let followed = direct.start(&list.command(&[]).texts());
    followed
        .line("it was started before and is PAUSED", SOON)
        .await;
    followed.line("PAUSED: ", SOON).await;
    followed.interrupt();
    assert_eq!(followed.wait(SOON).await.code(), Some(75));
    let said = followed.stderr().join("\n");
    assert!(
        said.contains("it goes on by itself") && said.contains("wxhub broadcast watch "),
        "{said}"
    );
    let resumed = direct.json(&["broadcast", "resume", id(&draft)]).await;
    assert_eq!(resumed["state"], json!("RUNNING"));
    let cancelled = direct.json(&["broadcast", "cancel", id(&draft)]).await;
    assert_eq!(cancelled["state"], json!("CANCELLED"));
    assert_eq!(watching.wait(SOON).await.code(), Some(0));
    let said = direct.ends(&list.command(&[]).texts(), 1).await.1;
    assert!(said.contains("the broadcast was cancelled"), "{said}");
}

#[tokio::test]
async fn the_same_command_twice_at_a_time_is_one_broadcast() {
    let dev = Dev::start(&[], &[]).await;
    let direct = Shell::of(&dev);
    let list = List::of_users(&strangers(25_000));
    let proxy = FaultProxy::start(&direct.url).await;
    let shell = Shell {
        url: proxy.url(&direct.url),
    };
    let (slower, _) = amid_the_upload(&list, &proxy, &shell, &direct).await;
    let faster = list.send(&direct, &["--detach"]).await;
    proxy.heal().await;
    assert_eq!(
        slower.wait(SOON).await.code(),
        Some(0),
        "{:#?}",
        slower.stderr()
    );
    let slower: Value = serde_json::from_str(&slower.stdout().join("\n")).unwrap();
    assert_eq!(id(&slower), id(&faster));
    assert_eq!(faster["recipients"], json!(25_000));
}

#[tokio::test]
async fn a_request_id_is_of_one_list_alone() {
    let dev = Dev::start(&[], &[]).await;
    let shell = Shell::of(&dev);
    let users = followers(&dev, 4).await;
    // What an upload leaves that ends after two users.
    let draft = draft(&dev, "autumn", &users[..2]).await;
    let named = ["--request-id", "autumn"];
    for other in [&users[1..], &users[..1]] {
        let command = List::of_users(other);
        let said = shell.fails(&command.command(&named).texts(), 1).await;
        assert!(said.contains("recipients of another list"), "{said}");
        assert!(
            said.contains(&format!("wxhub broadcast cancel {draft}")),
            "{said}"
        );
    }
    let sent = List::of_users(&users).send(&shell, &named).await;
    assert_eq!((id(&sent), &sent["recipients"]), (&*draft, &json!(4)));
    assert_eq!(got(&dev).await, each(&users, 1));

    let other = List::of_users(&users[1..]);
    let said = shell.fails(&other.command(&named).texts(), 1).await;
    assert!(
        said.contains("started for 4 users") && said.contains("names 3"),
        "{said}"
    );
    let twice: Vec<_> = users.iter().chain(&users[..1]).cloned().collect();
    let again = List::of_users(&twice).send(&shell, &named).await;
    assert_eq!(id(&again), draft);
}

/// A draft with these users.
async fn draft(dev: &Dev, request_id: &str, open_ids: &[String]) -> String {
    let data = TEMPLATE.iter().filter_map(|flag| flag.split_once('='));
    let data = data.map(|(keyword, value)| (keyword.to_owned(), value.to_owned()));
    let request = CreateBroadcastRequest {
        app_id: NEWS.to_owned(),
        request_id: request_id.to_owned(),
        content: Some(Content::Template(TemplateContent {
            template_id: TEMPLATE[1].to_owned(),
            data: data.collect(),
            ..TemplateContent::default()
        })),
        expire_time: None,
    };
    let mut rpc = PushServiceClient::new(dev.channel("push-service"));
    let created = rpc.create_broadcast(from_caller("dev-key", request)).await;
    let broadcast_id = created
        .unwrap()
        .into_inner()
        .broadcast
        .unwrap()
        .broadcast_id;
    let part = AddBroadcastRecipientsRequest {
        broadcast_id: broadcast_id.clone(),
        open_ids: open_ids.to_vec(),
    };
    let parts = from_caller("dev-key", futures_util::stream::iter([part]));
    rpc.add_broadcast_recipients(parts).await.unwrap();
    broadcast_id
}

#[tokio::test]
async fn mistakes_and_refusals_are_told_before_anything_is_sent() {
    let dev = Dev::start(&[], &[]).await;
    let mut shell = Shell::of(&dev);
    for (text, why) in [
        ("open_id,name\noA,a\n\n小明,b\n", "line 4: not an openid"),
        (
            "name,phone\na,b\n",
            "line 1: none of its columns is named open_id",
        ),
        ("open_id\n", "it names nobody"),
    ] {
        let said = shell.fails(&List::of(text).command(&[]).texts(), 1).await;
        assert!(said.contains(why), "{said}");
    }
    let list = List::of("oA\n");
    let nowhere = list.path("nowhere.csv");
    let send = [
        "broadcast",
        "send",
        &nowhere,
        "--app",
        "news",
        "--text",
        "hi",
    ];
    let said = shell.fails(&send, 1).await;
    assert!(said.contains("nowhere.csv cannot be opened"), "{said}");
    let late = ["--expire", "2020-01-01T00:00:00Z"];
    let said = shell.fails(&list.command(&late).texts(), 1).await;
    assert!(said.contains("(INVALID_ARGUMENT)"), "{said}");
    assert_eq!(
        shell.json(&["broadcast", "list", "--app", "news"]).await,
        json!([])
    );

    let nobody = "0192f0c1-2345-7000-8000-000000000001";
    for verb in ["show", "watch", "pause", "resume", "cancel", "report"] {
        let said = shell.fails(&["broadcast", verb, nobody], 1).await;
        assert!(
            said.contains("(BROADCAST_NOT_FOUND)") && said.contains("wxhub broadcast list"),
            "{said}"
        );
    }
    for flags in [
        &["--expire", "2h"][..],
        &["--text", "hello"],
        &["--again", "--request-id", "a"],
        &["--detach", "--report", "r.csv"],
    ] {
        shell.fails(&list.command(flags).texts(), 64).await;
    }
    shell.url = format!("http://127.0.0.1:{}", test_support::free_port());
    let said = shell.fails(&list.command(&[]).texts(), 75).await;
    assert!(said.contains("(PEER_UNAVAILABLE)"), "{said}");
}
