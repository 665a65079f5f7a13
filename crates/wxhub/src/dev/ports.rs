//! The ports of `wxhub dev`, and the flags that move them.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use service_kit::{run::Listeners, settings::Listen};
use tokio::net::TcpListener;

/// Where each part is to listen: on loopback, since everybody knows this world's secrets. Port 0 takes a free one.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(next_help_heading = "Ports (0 takes a free one)")]
pub(crate) struct Ports {
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8090")]
    sandbox_addr: SocketAddr,
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051")]
    token_grpc_addr: SocketAddr,
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    token_http_addr: SocketAddr,
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9101")]
    token_ops_addr: SocketAddr,
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50052")]
    auth_grpc_addr: SocketAddr,
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081")]
    auth_http_addr: SocketAddr,
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9102")]
    auth_ops_addr: SocketAddr,
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50053")]
    push_grpc_addr: SocketAddr,
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8082")]
    push_http_addr: SocketAddr,
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9103")]
    push_ops_addr: SocketAddr,
}

/// Where everything listens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addrs {
    pub(crate) sandbox: SocketAddr,
    pub(crate) token: Listen,
    pub(crate) auth: Listen,
    pub(crate) push: Listen,
}

/// The open ports.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) sandbox: TcpListener,
    pub(super) token: Listeners,
    pub(super) auth: Listeners,
    pub(super) push: Listeners,
}

impl Bound {
    pub(super) fn addrs(&self) -> io::Result<Addrs> {
        Ok(Addrs {
            sandbox: self.sandbox.local_addr()?,
            token: self.token.addrs()?,
            auth: self.auth.addrs()?,
            push: self.push.addrs()?,
        })
    }
}

const FREE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

impl Ports {
    /// A free port for everything.
    pub(crate) const FREE: Self = Self {
        sandbox_addr: FREE,
        token_grpc_addr: FREE,
        token_http_addr: FREE,
        token_ops_addr: FREE,
        auth_grpc_addr: FREE,
        auth_http_addr: FREE,
        auth_ops_addr: FREE,
        push_grpc_addr: FREE,
        push_http_addr: FREE,
        push_ops_addr: FREE,
    };

    /// Opens them all.
    ///
    /// # Errors
    /// Names the service whose port is taken, and the flag that moves it.
    pub(super) async fn bind(&self) -> anyhow::Result<Bound> {
        Ok(Bound {
            sandbox: bind("the sandbox", "HTTP", "--sandbox-addr", self.sandbox_addr).await?,
            token: Listeners {
                grpc: bind(
                    "token-service",
                    "gRPC",
                    "--token-grpc-addr",
                    self.token_grpc_addr,
                )
                .await?,
                http: bind(
                    "token-service",
                    "HTTP",
                    "--token-http-addr",
                    self.token_http_addr,
                )
                .await?,
                ops: bind(
                    "token-service",
                    "ops",
                    "--token-ops-addr",
                    self.token_ops_addr,
                )
                .await?,
            },
            auth: Listeners {
                grpc: bind(
                    "auth-service",
                    "gRPC",
                    "--auth-grpc-addr",
                    self.auth_grpc_addr,
                )
                .await?,
                http: bind(
                    "auth-service",
                    "HTTP",
                    "--auth-http-addr",
                    self.auth_http_addr,
                )
                .await?,
                ops: bind("auth-service", "ops", "--auth-ops-addr", self.auth_ops_addr).await?,
            },
            push: Listeners {
                grpc: bind(
                    "push-service",
                    "gRPC",
                    "--push-grpc-addr",
                    self.push_grpc_addr,
                )
                .await?,
                http: bind(
                    "push-service",
                    "HTTP",
                    "--push-http-addr",
                    self.push_http_addr,
                )
                .await?,
                ops: bind("push-service", "ops", "--push-ops-addr", self.push_ops_addr).await?,
            },
        })
    }
}

async fn bind(
    service: &str,
    protocol: &str,
    flag: &str,
    addr: SocketAddr,
) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.map_err(|error| {
        anyhow::anyhow!(
            "{service} cannot listen for {protocol} on {addr}: {error}\n    move it with {flag}, for example: {flag} 127.0.0.1:0"
        )
    })
}
