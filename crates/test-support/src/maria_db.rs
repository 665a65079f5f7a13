//! Empty MySQL databases, one per test.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::{Signal, geteuid};
use sea_orm::{ConnectOptions, ConnectionTrait as _, DatabaseConnection, DbErr, Statement};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::child::{self, Child};
use crate::{eventually, free_port};

/// Starting takes about a second; on a busy machine, and with recovery after a kill, longer.
const START: Duration = Duration::from_secs(60);

/// The server that the tests of one process share. It ends with the process.
static SHARED: OnceCell<MariaDb> = OnceCell::const_new();

/// A MariaDB server on a free port of 127.0.0.1, as small as it gets and as durable as in production: every commit is
/// on disk before it is acknowledged. It and its folder are gone on drop.
#[derive(Debug)]
pub struct MariaDb {
    port: u16,
    // Before the folder: fields drop in order, and the server goes before its files.
    process: Mutex<Option<Child>>,
    folder: TempDir,
    options: Vec<String>,
}

/// An empty database (utf8mb4, `utf8mb4_bin`: openids differ in case) with a random name. It goes with its server.
#[derive(Debug, Clone)]
pub struct Database {
    url: String,
}

impl Database {
    /// Its address: `mysql://root@127.0.0.1:<port>/<name>`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl MariaDb {
    /// A fresh, empty database on the server that this process's tests share.
    ///
    /// # Panics
    /// When MariaDB is not installed or does not start, with its log.
    pub async fn database() -> Database {
        SHARED
            .get_or_init(Self::start)
            .await
            .create_database()
            .await
    }

    /// Starts a server for one test, which may kill it.
    ///
    /// # Panics
    /// When MariaDB is not installed or does not start, with its log.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a server with options of its own, which win over those of [`MariaDb::start`].
    ///
    /// # Panics
    /// When MariaDB is not installed or does not start, with its log.
    pub async fn start_with(options: &[&str]) -> Self {
        let folder = child::folder("mariadb");
        std::fs::create_dir(folder.path().join("tmp")).expect("the folder is empty");
        let install = Command::new(child::program(&["mariadb-install-db", "mysql_install_db"]))
            .arg("--no-defaults")
            .args(folders(folder.path()))
            .args([
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                // Not every machine can resolve its own name.
                "--force",
                LOG_FILE_SIZE,
            ])
            .args(user())
            .stdin(Stdio::null())
            .output()
            .expect("mariadb-install-db starts");
        assert!(
            install.status.success(),
            "mariadb-install-db: {}\n{}{}",
            install.status,
            String::from_utf8_lossy(&install.stdout),
            String::from_utf8_lossy(&install.stderr)
        );
        let server = Self {
            port: free_port(),
            process: Mutex::new(None),
            folder,
            options: options.iter().map(|&option| option.to_owned()).collect(),
        };
        server.restart().await;
        server
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it does not run.
    pub fn id(&self) -> u32 {
        let process = self.process.lock().expect("no holder panics");
        process.as_ref().expect("the server runs").id()
    }

    /// A fresh, empty database on this server.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn create_database(&self) -> Database {
        let name = format!("wxhub_{:016x}", RandomState::new().build_hasher().finish());
        let connection = self.connect().await.expect("the server answers");
        connection
            .execute_unprepared(&format!(
                "CREATE DATABASE {name} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
            ))
            .await
            .expect("root may create a database");
        connection.close().await.expect("the connection closes");
        Database {
            url: format!("{}/{name}", self.url()),
        }
    }

    /// Kills the server as a power cut would. Connections to it break, new ones are refused.
    pub fn kill(&self) {
        self.process.lock().expect("no holder panics").take();
    }

    /// Starts the server, after killing it when it runs: on the same port, with every committed row.
    ///
    /// # Panics
    /// When it does not start, with its log.
    pub async fn restart(&self) {
        self.kill();
        let folder = self.folder.path();
        let log = folder.join("mariadb.log");
        let mut command = Command::new(child::program(&["mariadbd", "mysqld"]));
        command
            .arg("--no-defaults")
            .args(folders(folder))
            .arg(format!("--socket={}", folder.join("socket").display()))
            .arg(format!("--pid-file={}", folder.join("pid").display()))
            .arg(format!("--port={}", self.port))
            .args([
                "--bind-address=127.0.0.1",
                "--skip-name-resolve",
                "--skip-ssl",
                "--skip-log-bin",
            ])
            .args([
                "--character-set-server=utf8mb4",
                "--collation-server=utf8mb4_bin",
            ])
            .args([
                "--max-connections=500",
                "--performance-schema=off",
                "--innodb-buffer-pool-size=64M",
            ])
            .args(["--innodb-flush-log-at-trx-commit=1", LOG_FILE_SIZE])
            .args(&self.options)
            .args(user())
            .stdout(child::log_file(&log))
            .stderr(child::log_file(&log));
        *self.process.lock().expect("no holder panics") =
            Some(Child::spawn(&mut command, Some(folder)));

        eventually("mariadbd answers", START, async || {
            self.expect_running(&log);
            let status = match self.data_folder().await {
                // Our own answers: another process could have taken the port.
                Ok(data) if data.starts_with(&*folder.to_string_lossy()) => return Ok(()),
                Ok(data) => format!("the server of {data} answers"),
                Err(error) => error.to_string(),
            };
            Err(format!("{status}\n{}", child::log_tail(&log)))
        })
        .await;
    }

    /// Stops the server without closing a connection (SIGSTOP): it hangs, as an overloaded machine does.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a paused server go on (SIGCONT).
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn expect_running(&self, log: &Path) {
        let mut process = self.process.lock().expect("no holder panics");
        if let Some(status) = process.as_mut().and_then(Child::exit_status) {
            panic!("mariadbd ended at once: {status}\n{}", child::log_tail(log));
        }
    }

    fn signal(&self, signal: Signal) {
        self.process
            .lock()
            .expect("no holder panics")
            .as_mut()
            .expect("the server runs")
            .signal(signal);
    }

    fn url(&self) -> String {
        format!("mysql://root@127.0.0.1:{}", self.port)
    }

    async fn connect(&self) -> Result<DatabaseConnection, DbErr> {
        let mut options = ConnectOptions::new(self.url());
        options
            .max_connections(1)
            .connect_timeout(Duration::from_secs(5))
            .sqlx_logging(false);
        sea_orm::Database::connect(options).await
    }

    async fn data_folder(&self) -> Result<String, DbErr> {
        let connection = self.connect().await?;
        let statement =
            Statement::from_string(connection.get_database_backend(), "SELECT @@datadir");
        let row = connection
            .query_one_raw(statement)
            .await?
            .expect("a SELECT of a variable has a row");
        connection.close().await?;
        row.try_get_by_index(0)
    }
}

/// Enough for tests, and quick to create: the default is 96 MiB.
const LOG_FILE_SIZE: &str = "--innodb-log-file-size=10M";

/// Its data, and temporary files of its own: a server that starts removes those it finds, its neighbours' too.
fn folders(folder: &Path) -> [String; 2] {
    [("datadir", "data"), ("tmpdir", "tmp")]
        .map(|(option, name)| format!("--{option}={}", folder.join(name).display()))
}

/// MariaDB runs as root, as tests in containers do, only when told so.
fn user() -> Option<&'static str> {
    geteuid().is_root().then_some("--user=root")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn connect(database: &Database) -> Result<DatabaseConnection, DbErr> {
        let mut options = ConnectOptions::new(database.url());
        options
            .connect_timeout(Duration::from_secs(2))
            .sqlx_logging(false);
        sea_orm::Database::connect(options).await
    }

    async fn text(connection: &DatabaseConnection, query: &str) -> Result<String, DbErr> {
        let statement = Statement::from_string(connection.get_database_backend(), query);
        connection
            .query_one_raw(statement)
            .await?
            .expect("a row")
            .try_get_by_index(0)
    }

    #[tokio::test]
    async fn databases_are_empty_separate_and_tell_case_apart() {
        let (one, other) = (MariaDb::database().await, MariaDb::database().await);
        assert_ne!(one.url(), other.url());
        for database in [&one, &other] {
            let connection = connect(database).await.unwrap();
            connection
                .execute_unprepared("CREATE TABLE t (id VARCHAR(32) PRIMARY KEY)")
                .await
                .unwrap();
            connection
                .execute_unprepared("INSERT INTO t VALUES ('oABC'), ('oabc')")
                .await
                .unwrap();
        }
    }

    #[tokio::test]
    async fn a_commit_is_on_disk_when_it_is_acknowledged() {
        let connection = connect(&MariaDb::database().await).await.unwrap();
        let flush = text(
            &connection,
            "SELECT CAST(@@innodb_flush_log_at_trx_commit AS CHAR)",
        )
        .await;
        assert_eq!(flush.unwrap(), "1");
    }

    #[tokio::test]
    async fn committed_rows_survive_a_kill() {
        let server = MariaDb::start().await;
        let database = server.create_database().await;
        let connection = connect(&database).await.unwrap();
        connection
            .execute_unprepared("CREATE TABLE t (name TEXT)")
            .await
            .unwrap();
        connection
            .execute_unprepared("INSERT INTO t VALUES ('小明')")
            .await
            .unwrap();

        server.kill();
        assert!(connect(&database).await.is_err());

        server.restart().await;
        let connection = connect(&database).await.unwrap();
        assert_eq!(
            text(&connection, "SELECT name FROM t").await.unwrap(),
            "小明"
        );
    }

    #[tokio::test]
    async fn drop_ends_the_server_and_removes_its_folder() {
        let server = MariaDb::start().await;
        let (folder, port) = (server.folder.path().to_owned(), server.port);
        drop(server);
        assert!(!folder.exists());
        assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    }
}
