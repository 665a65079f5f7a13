//! TLS and mutual TLS between services, from the settings to a call.

use std::{net::SocketAddr, path::Path};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use service_kit::{
    Catalog, CatalogHandle, Problems, Settings,
    grpc::Routes,
    ops::Readiness,
    run::{Listeners, Server, Workers},
    settings::Listen,
    telemetry,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// An authority, and one certificate of it for `localhost`, as PEM files in `folder`.
fn certificates(folder: &Path) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    std::fs::write(folder.join("tls.crt"), certificate.pem()).unwrap();
    std::fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
}

fn path(folder: &Path, file: &str) -> Option<String> {
    Some(folder.join(file).to_str().unwrap().to_owned())
}

/// Calls `Health/Check` with the client's settings; whether the call came through.
async fn comes_through(server: &Settings, client: Settings) -> bool {
    telemetry::install_tls_provider();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listeners = Listeners::bind(Listen {
        grpc: any,
        http: any,
        ops: any,
    })
    .await
    .unwrap();
    let port = listeners.addrs().unwrap().grpc.port();
    let mut problems = Problems::default();
    let readiness = Readiness::default();
    readiness.set_ready();
    let server = Server {
        name: "probe-service",
        listeners,
        routes: Routes::default(),
        grpc_names: &[],
        descriptors: tonic_health::pb::FILE_DESCRIPTOR_SET,
        rules: &[],
        catalog: CatalogHandle::fixed(Catalog::default()),
        tls: server.server_tls(&mut problems).unwrap(),
        http: axum::Router::new(),
        readiness,
        workers: Workers::default(),
    };
    let peer = Settings {
        token_url: Some(format!("https://localhost:{port}")),
        caller_key: Some("key".to_owned().into()),
        ..client
    };
    let peer = peer.token_service(&mut problems).unwrap();
    let shutdown = CancellationToken::new();
    let mut tasks = JoinSet::new();
    tasks.spawn(server.run(shutdown.clone()));
    let answer = HealthClient::new(peer.channel())
        .check(HealthCheckRequest::default())
        .await;
    shutdown.cancel();
    tasks
        .join_all()
        .await
        .into_iter()
        .for_each(|ended| ended.unwrap());
    answer.is_ok()
}

#[tokio::test]
async fn tls_needs_the_authority_and_mutual_tls_a_client_certificate() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let tls = Settings {
        tls_cert: path(folder.path(), "tls.crt"),
        tls_key: path(folder.path(), "tls.key"),
        ..Settings::default()
    };
    let mutual = Settings {
        tls_client_ca: path(folder.path(), "ca.pem"),
        ..tls.clone()
    };
    let trusting = Settings {
        tls_ca: path(folder.path(), "ca.pem"),
        ..Settings::default()
    };
    let certified = Settings {
        tls_ca: trusting.tls_ca.clone(),
        ..tls.clone()
    };

    assert!(comes_through(&tls, trusting.clone()).await);
    assert!(!comes_through(&tls, Settings::default()).await);
    assert!(!comes_through(&mutual, trusting).await);
    assert!(comes_through(&mutual, certified).await);
}
