"""wechatpy as it is published; only the host of its requests is another. Arguments: the door, the sandbox, the caller's key."""

import sys
import time

import requests
from requests.adapters import HTTPAdapter
from wechatpy import WeChatClient
from wechatpy.exceptions import WeChatClientException

NEWS = "wx0000000000000002"
WECHAT = "https://api.weixin.qq.com"


class Host(HTTPAdapter):
    def __init__(self, url):
        super().__init__()
        self.url = url

    def send(self, request, **kwargs):
        request.url = request.url.replace(WECHAT, self.url, 1)
        return super().send(request, **kwargs)


def client(key):
    made = WeChatClient(NEWS, key)
    made._http.mount(WECHAT + "/cgi-bin/token", Host(door))
    made._http.mount(WECHAT + "/cgi-bin/ticket/", Host(door))
    made._http.mount(WECHAT, Host(sandbox))
    return made


def refusal(call):
    try:
        call()
    except WeChatClientException as error:
        return error.errcode
    raise AssertionError("not refused")


door, sandbox, key = sys.argv[1:]

# It fetches, caches and uses a token, and signs a page with a ticket.
sdk = client(key)
token = sdk.access_token
assert token == sdk.access_token
assert 0 < sdk.expires_at - time.time() <= 7200
assert sdk.get("get_api_domain_ip")["ip_list"]
ticket = sdk.jsapi.get_jsapi_ticket()
assert ticket != sdk.jsapi.get_jsapi_card_ticket()
assert len(sdk.jsapi.get_jsapi_signature("nonce", ticket, 1, "https://h5.example.com/")) == 40

# A wrong key is an exception like any other of its.
assert refusal(lambda: client("another").access_token) == 40125

# Its token dies. It asks again by itself, as often as it is used, until there is another: 30 s after the dead one at the latest.
requests.post(sandbox + "/sandbox/invalidate", json={"app_id": NEWS}).raise_for_status()
end = time.monotonic() + 45
while True:
    try:
        sdk.get("get_api_domain_ip")
        break
    except WeChatClientException as error:
        assert error.errcode == -1, error
        assert time.monotonic() < end, error
        time.sleep(1)
assert sdk.access_token != token
print("wechatpy is content")
