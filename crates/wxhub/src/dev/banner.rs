//! What `wxhub dev` says when everything is ready.

use std::fmt;

use secrecy::ExposeSecret as _;

use super::{Addrs, Args, Dev};
use crate::{demo, world};

/// What runs where, and what to try next. Its commands work as they stand.
pub(super) struct Banner {
    addrs: Addrs,
    catalog: String,
    folder: String,
    is_temporary: bool,
    /// None when it is a secret of the developer's own.
    caller_key: Option<&'static str>,
}

impl Dev {
    pub(super) fn banner(&self, args: &Args) -> Banner {
        let catalog = args.config.clone();
        let catalog = catalog.unwrap_or_else(|| self.folder.path().join("wxhub.toml"));
        let is_public = args.caller_key.expose_secret() == world::CALLER_KEY;
        Banner {
            addrs: self.addrs,
            catalog: catalog.display().to_string(),
            folder: self.folder.path().display().to_string(),
            is_temporary: self.folder.is_temporary(),
            caller_key: is_public.then_some(world::CALLER_KEY),
        }
    }
}

impl fmt::Display for Banner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Addrs {
            sandbox,
            token,
            auth,
            push,
        } = self.addrs;
        writeln!(f, "wxhub dev is ready\n")?;
        writeln!(
            f,
            "  {:<15} {:<17} {:<23} /livez /readyz /metrics",
            "", "gRPC", "HTTP"
        )?;
        for (name, at) in [
            ("token-service", token),
            ("auth-service", auth),
            ("push-service", push),
        ] {
            let (grpc, http, ops) = (at.grpc.to_string(), format!("http://{}", at.http), at.ops);
            writeln!(f, "  {name:<15} {grpc:<17} {http:<23} http://{ops}")?;
        }
        writeln!(
            f,
            "  {:<15} {:<17} http://{sandbox}   WeChat; its phone is the page at /",
            "sandbox", ""
        )?;
        writeln!(
            f,
            "  {:<15} {:<17} http://{}/debug   signs in, signs for the JS-SDK, decrypts\n",
            "debug page", "", auth.http
        )?;

        writeln!(
            f,
            "  apps            shop (mini program {}), news (official account {})",
            world::SHOP,
            world::NEWS
        )?;
        match self.caller_key {
            Some(key) => writeln!(
                f,
                "  caller key      {key}: every app and scope, as `authorization: Bearer {key}`"
            )?,
            None => writeln!(f, "  caller key      the one in WXHUB_CALLER_KEY")?,
        }
        writeln!(
            f,
            "  apps, callers   {} (a change takes effect within a second)",
            self.catalog
        )?;
        let fate = if self.is_temporary {
            "removed at the end: --data-dir keeps them"
        } else {
            "kept"
        };
        writeln!(f, "  databases       {} ({fate})\n", self.folder)?;

        writeln!(f, "Try next, in another terminal:\n")?;
        writeln!(
            f,
            "  # Log in: a js_code from the phone, a session from auth-service"
        )?;
        writeln!(
            f,
            r#"  js_code=$(curl -s http://{sandbox}/sandbox/login -d '{{"app_id":"{}"}}' | sed 's/.*"js_code":"\([^"]*\)".*/\1/')"#,
            world::SHOP
        )?;
        writeln!(
            f,
            r#"  curl -i http://{}/login -d "{{\"app_id\":\"shop\",\"js_code\":\"$js_code\"}}""#,
            auth.http
        )?;
        writeln!(
            f,
            "\n  # Log in, verify, fetch a token and push over gRPC, from Python"
        )?;
        writeln!(
            f,
            "  python3 -m venv target/python-venv && target/python-venv/bin/pip install -qr examples/python/requirements.txt"
        )?;
        writeln!(
            f,
            "  target/python-venv/bin/python examples/python/quickstart.py{}",
            self.python_flags()
        )?;
        writeln!(f, "\n  # The whole story, step by step")?;
        writeln!(f, "  {} demo{}", program(), demo::flags(&self.addrs))?;
        write!(f, "\nCtrl-C stops it.")
    }
}

impl Banner {
    /// Where things are, for the Python example, as far as it does not know.
    fn python_flags(&self) -> String {
        let Addrs {
            sandbox,
            token,
            auth,
            push,
        } = self.addrs;
        [
            ("token", token.grpc.to_string(), "127.0.0.1:50051"),
            ("auth", auth.grpc.to_string(), "127.0.0.1:50052"),
            ("push", push.grpc.to_string(), "127.0.0.1:50053"),
            (
                "sandbox",
                format!("http://{sandbox}"),
                "http://127.0.0.1:8090",
            ),
        ]
        .into_iter()
        .filter(|(_, at, default)| at != default)
        .map(|(flag, at, _)| format!(" --{flag} {at}"))
        .collect()
    }
}

/// How this program was called: cargo tells those that it runs about itself.
fn program() -> &'static str {
    if std::env::var_os("CARGO_MANIFEST_DIR").is_some() {
        "cargo run --"
    } else {
        "wxhub"
    }
}
