//! `wxhub dev` as a child process on free ports.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde_json::Value;
use test_support::Process;
use tonic::{
    Request,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

/// The program.
pub(crate) const WXHUB: &str = env!("CARGO_BIN_EXE_wxhub");
/// Everything that is awaited here comes much sooner; on a busy machine, not that much.
pub(crate) const SOON: Duration = Duration::from_secs(60);

const FREE: &str = "127.0.0.1:0";
const PORTS: [&str; 10] = [
    "--sandbox-addr",
    "--token-grpc-addr",
    "--token-http-addr",
    "--token-ops-addr",
    "--auth-grpc-addr",
    "--auth-http-addr",
    "--auth-ops-addr",
    "--push-grpc-addr",
    "--push-http-addr",
    "--push-ops-addr",
];

/// Flags that put everything on free ports, but for the ones that are given.
pub(crate) fn ports<'a>(given: &[&'a str]) -> Vec<&'a str> {
    let free = PORTS
        .iter()
        .filter(|flag| !given.contains(*flag))
        .flat_map(|flag| [*flag, FREE]);
    free.chain(given.iter().copied()).collect()
}

/// A running one, with its banner.
pub(crate) struct Dev {
    pub(crate) process: Process,
    pub(crate) banner: Vec<String>,
}

impl Dev {
    /// Starts it and waits until it says that it is ready.
    pub(crate) async fn start(args: &[&str], env: &[(&str, &str)]) -> Self {
        let args = [&["dev"], ports(args).as_slice()].concat();
        let process = Process::start(WXHUB, args, env.iter().copied());
        process.line("Ctrl-C stops it", SOON).await;
        let banner = process.stdout();
        Self { process, banner }
    }

    fn row(&self, name: &str) -> Vec<&str> {
        let mut rows = self
            .banner
            .iter()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.find(|row| row.first() == Some(&name))
            .unwrap_or_else(|| panic!("no {name} in {:#?}", self.banner))
    }

    /// Where a service's gRPC is.
    pub(crate) fn grpc(&self, service: &str) -> &str {
        self.row(service)[1]
    }

    /// Where a service's pages are, or the sandbox's: `http://127.0.0.1:<port>`.
    pub(crate) fn http(&self, name: &str) -> String {
        let cell = self.row(name).into_iter();
        let mut urls = cell.filter(|cell| cell.starts_with("http://"));
        urls.next().unwrap().to_owned()
    }

    /// A connection to a service's gRPC.
    pub(crate) fn channel(&self, service: &str) -> Channel {
        let url = format!("http://{}", self.grpc(service));
        Endpoint::from_shared(url).unwrap().connect_lazy()
    }

    /// Makes the sandbox do something.
    pub(crate) async fn sandbox(&self, path: &str, body: &Value) -> Value {
        self.ask_sandbox(path, |http, url| http.post(url).json(body))
            .await
    }

    /// What the users' phones hold.
    pub(crate) async fn inbox(&self, app_id: &str) -> Vec<Value> {
        let path = format!("/sandbox/inbox?app_id={app_id}");
        let inbox = self.ask_sandbox(&path, |http, url| http.get(url)).await;
        inbox["messages"].as_array().unwrap().clone()
    }

    async fn ask_sandbox(
        &self,
        path: &str,
        request: impl FnOnce(reqwest::Client, String) -> reqwest::RequestBuilder,
    ) -> Value {
        service_kit::telemetry::install_tls_provider();
        let http = reqwest::Client::builder().no_proxy().timeout(SOON);
        let url = format!("{}{path}", self.row("sandbox")[1]);
        let answer = request(http.build().unwrap(), url).send().await;
        let text = answer.unwrap().error_for_status().unwrap().text().await;
        serde_json::from_str(&text.unwrap()).unwrap_or_default()
    }

    /// Every address of the table.
    pub(crate) fn addrs(&self) -> Vec<SocketAddr> {
        let rows =
            ["token-service", "auth-service", "push-service", "sandbox"].map(|name| self.row(name));
        let cells = rows.iter().flatten();
        let addrs = cells.filter_map(|cell| {
            cell.trim_start_matches("http://")
                .trim_end_matches('/')
                .parse()
                .ok()
        });
        let addrs: Vec<_> = addrs.collect();
        assert_eq!(addrs.len(), PORTS.len(), "{:#?}", self.banner);
        addrs
    }

    /// The folder with the databases.
    pub(crate) fn folder(&self) -> PathBuf {
        self.row("databases")[1].into()
    }

    /// What "Try next" says, as a script.
    pub(crate) fn commands(&self) -> String {
        let lines = self
            .banner
            .iter()
            .skip_while(|line| !line.starts_with("Try next"))
            .skip(1);
        let lines: Vec<_> = lines
            .take_while(|line| !line.starts_with("Ctrl-C"))
            .map(String::as_str)
            .collect();
        lines.join("\n")
    }

    /// The flags that lead the demo here.
    pub(crate) fn demo_flags(&self) -> Vec<String> {
        let line = self
            .banner
            .iter()
            .find(|line| line.contains(" demo --"))
            .unwrap();
        line.split_whitespace().skip(2).map(str::to_owned).collect()
    }
}

/// A request of the caller with this key.
pub(crate) fn from_caller<T>(key: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value: MetadataValue<_> = format!("Bearer {key}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}
