//! A browser of one's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::error::WebDriverResult;
use thirtyfour::{
    By, ChromiumLikeCapabilities as _, DesiredCapabilities, LoggingPrefsLogLevel, WebDriver,
    WebElement,
};
use url::Url;

use crate::child::{self, Child};
use crate::eventually;

/// A start takes about a second, a page much less; on a busy machine, not that little.
const SOON: Duration = Duration::from_secs(60);
/// Where [`Browser::screenshot`] writes.
const SCREENSHOTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/screenshots");

/// What a browser shows pages on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Screen {
    /// 390 × 844, touched.
    Phone,
    /// 1280 × 800.
    Desktop,
}

/// A headless Chromium with cookies of its own. It and its folder are gone on drop.
///
/// Its methods wait for what they need, and panic when it does not come.
#[derive(Debug)]
pub struct Browser {
    // Fields drop in order: the session ends, then the driver, then their files go.
    driver: WebDriver,
    _chromedriver: Child,
    _folder: TempDir,
}

impl Browser {
    /// Starts one that prefers `language`, for example `zh-CN`.
    ///
    /// # Panics
    /// When Chromium or its driver is not installed or does not start, with the driver's log.
    pub async fn start(screen: Screen, language: &str) -> Self {
        // Whoever comes second finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = child::folder("browser");
        let log = folder.path().join("chromedriver.log");
        let mut command = Command::new(child::program(&["chromedriver"]));
        command
            .arg("--port=0")
            .env("TMPDIR", folder.path())
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .stdout(child::log_file(&log))
            .stderr(child::log_file(&log));
        let chromedriver = Child::spawn(&mut command, Some(folder.path()));
        let port = eventually("chromedriver tells its port", SOON, async || {
            port(&log).ok_or_else(|| child::log_tail(&log))
        })
        .await;
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            // The drop ends the session from another runtime, which cannot go on with this one's connections.
            .pool_max_idle_per_host(0)
            .timeout(SOON)
            .build()
            .expect("a client for plain HTTP can be built");
        let capabilities =
            capabilities(screen, language, folder.path()).expect("the options are JSON");
        let driver = WebDriver::builder(format!("http://127.0.0.1:{port}"), capabilities)
            .client(http)
            .await
            .unwrap_or_else(|error| panic!("no browser: {error}\n{}", child::log_tail(&log)));
        Self {
            driver,
            _chromedriver: chromedriver,
            _folder: folder,
        }
    }

    /// Opens a page and waits until it is loaded.
    pub async fn open(&self, url: &str) {
        let opened = self.driver.goto(url).await;
        opened.unwrap_or_else(|error| panic!("{url}: {error}"));
    }

    /// Where it is.
    pub async fn url(&self) -> Url {
        self.driver
            .current_url()
            .await
            .expect("the browser tells its URL")
    }

    /// Waits until it is at a URL that contains `part`, and returns it.
    pub async fn at(&self, part: &str) -> Url {
        eventually(&format!("a URL with {part:?}"), SOON, async || {
            let url = self.url().await;
            if url.as_str().contains(part) {
                Ok(url)
            } else {
                Err(url)
            }
        })
        .await
    }

    /// Presses what `css` selects.
    pub async fn click(&self, css: &str) {
        // A click that comes too early, or onto something that a script just replaced, is tried again.
        let what = format!("a click on {css}");
        let click = async || self.shown(css).await?.click().await;
        eventually(&what, SOON, click).await;
    }

    /// Types `text` into the field that `css` selects, in place of what it holds.
    pub async fn fill(&self, css: &str, text: &str) {
        let what = format!("a field {css} to type into");
        let fill = async || {
            let field = self.shown(css).await?;
            field.clear().await?;
            field.send_keys(text).await
        };
        eventually(&what, SOON, fill).await;
    }

    /// What a person reads in what `css` selects.
    pub async fn text(&self, css: &str) -> String {
        let what = format!("a text in {css}");
        eventually(&what, SOON, async || self.shown(css).await?.text().await).await
    }

    /// Waits until what `css` selects reads `part`, among other things.
    pub async fn reads(&self, css: &str, part: &str) {
        let what = format!("{part:?} in {css}");
        eventually(&what, SOON, async || {
            let shown = async { self.shown(css).await?.text().await };
            let text = shown.await.map_err(|error| error.to_string())?;
            if text.contains(part) {
                Ok(())
            } else {
                Err(text)
            }
        })
        .await;
    }

    /// What a script returns.
    pub async fn run(&self, script: &str) -> Value {
        let returned = self.driver.execute(script, Vec::new()).await;
        returned
            .unwrap_or_else(|error| panic!("{script}: {error}"))
            .json()
            .clone()
    }

    /// Waits for a second tab, and goes there.
    pub async fn next_tab(&self) {
        let current = self.driver.window().await.expect("a tab is open");
        let next = eventually("another tab", SOON, async || {
            let mut tabs = self.driver.windows().await.unwrap_or_default();
            tabs.retain(|tab| *tab != current);
            tabs.pop()
        })
        .await;
        let switched = self.driver.switch_to_window(next).await;
        switched.expect("the tab is still open");
    }

    /// Writes what is seen to `target/screenshots/<name>.png`.
    pub async fn screenshot(&self, name: &str) {
        let picture = self.driver.screenshot_as_png().await;
        fs::create_dir_all(SCREENSHOTS).expect("target can be written");
        let path = PathBuf::from(SCREENSHOTS).join(format!("{name}.png"));
        fs::write(path, picture.expect("the page can be drawn")).expect("target can be written");
    }

    /// Asserts that nothing on a page is cut off at the side, so that a phone's user need not pan.
    pub async fn fits(&self) {
        let script =
            "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]";
        let widths = self.run(script).await;
        assert_eq!(
            widths.get(0),
            widths.get(1),
            "{} is wider than its screen",
            self.url().await
        );
    }

    /// What the console says since the last look: scripts that failed, what was missing, policies that were broken.
    pub async fn complaints(&self) -> Vec<String> {
        let log = self.driver.browser_log().await;
        let entries = log.expect("the console can be read").into_iter();
        entries.map(|entry| entry.message).collect()
    }

    /// Asserts that there are no [`complaints`](Self::complaints).
    pub async fn complains_of_nothing(&self) {
        let complaints = self.complaints().await;
        assert!(complaints.is_empty(), "{complaints:#?}");
    }

    async fn shown(&self, css: &str) -> WebDriverResult<WebElement> {
        self.driver.find(By::Css(css)).await
    }
}

fn port(log: &Path) -> Option<u16> {
    let text = fs::read_to_string(log).ok()?;
    let (_, rest) = text.split_once("started successfully on port ")?;
    rest.split_once('.')?.0.parse().ok()
}

fn capabilities(
    screen: Screen,
    language: &str,
    folder: &Path,
) -> WebDriverResult<thirtyfour::Capabilities> {
    let mut chrome = DesiredCapabilities::chrome();
    let binary = child::program(&[
        "chromium",
        "chromium-browser",
        "google-chrome",
        "google-chrome-stable",
    ]);
    chrome.set_binary(&binary.to_string_lossy())?;
    chrome.set_browser_log_level(LoggingPrefsLogLevel::Warning)?;
    let profile = format!("--user-data-dir={}", folder.join("profile").display());
    let arguments = [
        "--headless=new",
        // Over a pipe, whose end is the browser's.
        "--remote-debugging-pipe",
        "--no-proxy-server",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        // Containers give /dev/shm too little.
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1280,800",
        &format!("--lang={language}"),
        &profile,
    ];
    for argument in arguments {
        chrome.add_arg(argument)?;
    }
    if rustix::process::geteuid().is_root() {
        // The browser refuses to isolate its processes where it has all rights.
        chrome.add_arg("--no-sandbox")?;
    }
    chrome.add_experimental_option("prefs", json!({"intl.accept_languages": language}))?;
    if screen == Screen::Phone {
        let metrics =
            json!({"width": 390, "height": 844, "pixelRatio": 2.0, "mobile": true, "touch": true});
        chrome.add_experimental_option("mobileEmulation", json!({"deviceMetrics": metrics}))?;
    }
    Ok(chrome.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_page_is_seen_as_a_person_sees_it() {
        let phone = Browser::start(Screen::Phone, "zh-CN").await;
        let page = "data:text/html;charset=utf-8,<meta name=viewport content='width=device-width'><p>你好</p>\
            <input id=i><button onclick=\"document.querySelector('p').textContent = i.value\">b</button>";
        phone.open(page).await;
        assert_eq!(phone.text("p").await, "你好");
        phone.fill("input", "<b>").await;
        phone.click("button").await;
        phone.reads("p", "<b>").await;
        assert_eq!(
            phone.run("return [innerWidth, navigator.language]").await,
            json!([390, "zh-CN"])
        );
        phone.fits().await;
        phone.complains_of_nothing().await;
    }

    #[tokio::test]
    #[should_panic(expected = "no such thing")]
    async fn a_failing_script_is_a_complaint() {
        let desktop = Browser::start(Screen::Desktop, "en-US").await;
        desktop
            .open("data:text/html,<script>throw new Error('no such thing')</script>")
            .await;
        desktop.complains_of_nothing().await;
    }
}
