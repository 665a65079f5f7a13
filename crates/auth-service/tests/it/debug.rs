//! The page to try everything with is `wxhub dev`'s alone.

use test_support::Process;

use crate::world::{CATALOG, PATIENCE, World, error};

const PATHS: [&str; 3] = ["/debug", "/debug.js", "/debug.css"];

#[tokio::test]
async fn the_service_has_no_debug_page() {
    let world = World::embedded().await;
    for path in PATHS {
        let (status, body) = error(world.get(path, None).await).await;
        assert_eq!((status, body["code"].as_str()), (404, Some("NOT_FOUND")));
    }
}

#[tokio::test]
async fn no_setting_makes_the_binary_serve_it() {
    let folder = tempfile::tempdir().unwrap();
    let catalog = folder.path().join("wxhub.toml");
    std::fs::write(&catalog, CATALOG).unwrap();
    let catalog = catalog.display().to_string();
    let database = format!("sqlite://{}/auth.sqlite", folder.path().display());
    let anywhere = "127.0.0.1:0";
    let settings = [
        ("WXHUB_CONFIG", catalog.as_str()),
        ("WXHUB_DATABASE_URL", &database),
        ("WXHUB_EMBEDDED", "1"),
        ("WXHUB_GRPC_ADDR", anywhere),
        ("WXHUB_HTTP_ADDR", anywhere),
        ("WXHUB_OPS_ADDR", anywhere),
        ("WXHUB_TOKEN_URL", "http://127.0.0.1:9"),
        ("WXHUB_CALLER_KEY", "key"),
        ("WXHUB_PUBLIC_URL", "http://127.0.0.1:8081"),
        ("WXHUB_WECHAT_API_URL", "http://127.0.0.1:9"),
        ("WXHUB_WECHAT_OPEN_URL", "http://127.0.0.1:9"),
        // What one might try.
        ("WXHUB_DEBUG", "1"),
        ("WXHUB_DEV", "1"),
    ];
    let process = Process::start(env!("CARGO_BIN_EXE_auth-service"), [], settings);
    let listening = process.line("listening", PATIENCE).await;
    let listening: serde_json::Value = serde_json::from_str(&listening).unwrap();
    let at = listening["http"].as_str().unwrap();
    for path in PATHS {
        let answer = World::fetch(&format!("http://{at}{path}")).await;
        assert_eq!(answer.status(), 404, "{path}");
    }
}
