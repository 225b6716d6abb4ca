"""cloud.py catalog KEYSTONE PASSWORD NAME=TYPE=URL...: the users, roles and endpoints of an empty cloud.
cloud.py ready KEYSTONE PASSWORD HOST...: waits until Nova says that each of these hosts is up, and that whoever conducts and schedules is.
"""

import json
import sys
import time
import urllib.error
import urllib.request

verb, keystone, password, *rest = sys.argv[1:]
# No proxy: all of it is on loopback.
http = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(method, url, body=None, **headers):
    headers |= {"Content-Type": "application/json"}
    request = urllib.request.Request(url, method=method, headers=headers, data=body and json.dumps(body).encode())
    try:
        answer = http.open(request, timeout=60)
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{method} {url}: {error.code} {error.read().decode()}")
    text = answer.read()
    return answer.headers, text and json.loads(text)


def log_in():
    user = {"name": "admin", "domain": {"id": "default"}, "password": password}
    scope = {"project": {"name": "admin", "domain": {"id": "default"}}}
    auth = {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": scope}
    headers, answer = call("POST", f"{keystone}/auth/tokens", {"auth": auth})
    return {"X-Auth-Token": headers["X-Subject-Token"]}, answer["token"]["catalog"]


def catalog(token):
    def made(kind, **what):
        return call("POST", f"{keystone}/{kind}s", {kind: what}, **token)[1][kind]["id"]

    def granted(project, user, role):
        call("PUT", f"{keystone}/projects/{project}/users/{user}/roles/{role}", **token)

    known = {role["name"]: role["id"] for role in call("GET", f"{keystone}/roles", **token)[1]["roles"]}
    known["service"] = known.get("service") or made("role", name="service")
    service, demo = (made("project", name=name, domain_id="default") for name in ("service", "demo"))
    granted(demo, made("user", name="demo", domain_id="default", password=password), known["member"])
    for spec in rest:
        name, kind, url = spec.split("=", 2)
        user = made("user", name=name, domain_id="default", password=password)
        for role in ("admin", "service"):
            granted(service, user, known[role])
        made("endpoint", service_id=made("service", name=name, type=kind), interface="public", region_id="RegionOne", url=url)


def ready(token, catalog):
    nova = next(service for service in catalog if service["type"] == "compute")["endpoints"][0]["url"]
    wanted = {("nova-compute", host) for host in rest} | {("nova-conductor", "control"), ("nova-scheduler", "control")}
    for _ in range(600):
        services = call("GET", f"{nova}/os-services", **token)[1]["services"]
        missing = wanted - {(service["binary"], service["host"]) for service in services if service["state"] == "up"}
        if not missing:
            return
        time.sleep(0.5)
    raise SystemExit(f"not up after five minutes: {missing}")


if verb == "catalog":
    catalog(log_in()[0])
else:
    ready(*log_in())
