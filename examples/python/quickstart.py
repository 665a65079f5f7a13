"""Logs a user in, verifies the session, fetches an access_token and pushes a template message.

Against a running `wxhub dev`: cargo run, then in another terminal
    python3 -m venv target/python-venv && target/python-venv/bin/pip install -qr examples/python/requirements.txt
    target/python-venv/bin/python examples/python/quickstart.py
"""

import argparse
import importlib
import json
import pathlib
import sys
import tempfile
import time
import urllib.error
import urllib.request

import grpc
import grpc_tools
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
DEADLINE = 10  # seconds, for each call


def generate_stubs(folder):
    """Compiles proto/ into `folder`. A project of your own would do this once, in its build."""
    files = [str(path) for path in sorted(PROTO.glob("wxhub/*/v1/*.proto"))]
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{PROTO}", f"-I{well_known}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    if protoc.main(arguments + files) != 0:
        sys.exit("proto/ could not be compiled")
    sys.path.insert(0, folder)


def stub(service, target, metadata):
    """The messages of one service, and a client of it that sends the caller's key with each call."""
    messages = importlib.import_module(f"wxhub.{service}.v1.{service}_pb2")
    services = importlib.import_module(f"wxhub.{service}.v1.{service}_pb2_grpc")
    channel = grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)])
    client = getattr(services, f"{service.capitalize()}ServiceStub")(channel)

    def call(method, request):
        return getattr(client, method)(request, timeout=DEADLINE, metadata=metadata)

    return messages, call


def sandbox(url, path, body):
    """Does something to the sandboxed WeChat."""
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=DEADLINE) as answer:
        return json.load(answer)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--token", default="127.0.0.1:50051", metavar="ADDR", help="token-service's gRPC")
    parser.add_argument("--auth", default="127.0.0.1:50052", metavar="ADDR", help="auth-service's gRPC")
    parser.add_argument("--push", default="127.0.0.1:50053", metavar="ADDR", help="push-service's gRPC")
    parser.add_argument("--sandbox", default="http://127.0.0.1:8090", metavar="URL", help="the sandboxed WeChat")
    parser.add_argument("--caller-key", default="dev-key", metavar="KEY", help="the key of a caller in wxhub.toml")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="wxhub-stubs-") as folder:
        generate_stubs(folder)
        metadata = [("authorization", f"Bearer {options.caller_key}")]
        auth, call_auth = stub("auth", options.auth, metadata)
        token, call_token = stub("token", options.token, metadata)
        push, call_push = stub("push", options.push, metadata)

    # The mini program calls wx.login on the user's phone and sends the code to your backend.
    phone = sandbox(options.sandbox, "/sandbox/login", {"app_id": "wx0000000000000001"})
    session = call_auth("Login", auth.LoginRequest(app_id="shop", js_code=phone["js_code"])).session
    print(f"logged in: user {session.user.user_id}, open_id {session.user.open_id}")

    # Later requests of the phone show the session token; any backend can ask whose it is.
    verified = call_auth("VerifySession", auth.VerifySessionRequest(session_token=session.session_token))
    assert verified.user.open_id == phone["open_id"], verified.user
    print(f"verified: a session of {verified.app_id} until {verified.expire_time.ToJsonString()}")

    # For calls to WeChat of your own. Ask each time, or cache until use_until.
    held = call_token("GetAccessToken", token.GetAccessTokenRequest(app_id="news")).access_token
    print(f"access_token: version {held.version}, {held.token[:6]}…, good until {held.use_until.ToJsonString()}")

    # Template messages go to users who follow the official account: this one does by tapping "follow".
    follower = sandbox(options.sandbox, "/sandbox/deliver", {"app_id": "wx0000000000000002", "event": "subscribe"})
    request = push.SendMessageRequest(
        app_id="news",
        open_id=follower["open_id"],
        request_id=f"order-{time.time_ns()}",  # the same id again would return the first message, not send another
        template=push.TemplateContent(
            template_id="TEMPLATE_ORDER_PAID",
            url="https://h5.example.com/orders/42",
            data={"thing1": "订单 42", "amount2": "¥12.50", "time3": "2026-11-21 10:00"},
        ),
    )
    message = call_push("SendMessage", request).message
    print(f"accepted: message {message.message_id} is {push.MessageState.Name(message.state)}")

    deadline = time.monotonic() + 20
    done = (push.MESSAGE_STATE_SENT, push.MESSAGE_STATE_DELIVERED)
    while message.state not in done:
        if message.state == push.MESSAGE_STATE_FAILED or time.monotonic() > deadline:
            sys.exit(f"not sent: {push.MessageState.Name(message.state)} {message.errcode} {message.errmsg}")
        time.sleep(0.1)
        message = call_push("GetMessage", push.GetMessageRequest(message_id=message.message_id)).message
    print(f"sent: {push.MessageState.Name(message.state)}, WeChat's id {message.wechat_msg_id}")


if __name__ == "__main__":
    try:
        main()
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
    except urllib.error.URLError as error:
        sys.exit(f"the sandbox does not answer ({error.reason}): is `cargo run` running?")
