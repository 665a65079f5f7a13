"use strict";

const page = document.getElementById("debug").dataset;
const show = (id, value) => {
  document.getElementById(id).textContent =
    typeof value === "string" ? value : JSON.stringify(value, null, 2);
};

// What a page in WeChat has of jweixin.js, as far as this page needs it.
window.wx = { config: (config) => show("config", config) };

async function me() {
  if (page.signedIn === "false") return show("me", page.nobody);
  const answer = await fetch("/me?app=" + encodeURIComponent(page.app));
  show("me", answer.status === 401 ? page.nobody : await answer.json());
}

async function signOut() {
  await fetch("/logout?app=" + encodeURIComponent(page.app), { method: "POST" });
  page.signedIn = false;
  await me();
}

function configure() {
  const script = document.createElement("script");
  const url = location.href.split("#")[0];
  script.src = "/jssdk/config.js?app=" + encodeURIComponent(page.app) +
    "&jsApiList=chooseImage,scanQRCode&debug=true&url=" + encodeURIComponent(url);
  script.onerror = async () => {
    const answer = await fetch(script.src);
    show("config", page.failed + (await answer.text()));
  };
  document.head.append(script);
}

async function post(url, body, headers) {
  const answer = await fetch(url, { method: "POST", headers, body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(url + ": " + (await answer.text()));
  return answer;
}

async function decrypt() {
  const app_id = page.miniProgram;
  const wx_login = await (await post(page.sandbox + "/sandbox/login", { app_id })).json();
  const login = await post("/login", { app_id, js_code: wx_login.js_code });
  const session = login.headers.get("authorization");
  const { open_id } = wx_login;
  const encrypted = await (await post(page.sandbox + "/sandbox/user-data", { app_id, open_id })).json();
  show("encrypted", encrypted);
  show("data", await (await post("/user-data", encrypted, { authorization: session })).json());
}

const failing = (id, run) => () => run().catch((error) => show(id, page.failed + error.message));

if (document.getElementById("sign-out")) {
  document.getElementById("sign-out").addEventListener("click", failing("me", signOut));
}
document.getElementById("decrypt").addEventListener("click", failing("data", decrypt));
failing("me", me)();
configure();
