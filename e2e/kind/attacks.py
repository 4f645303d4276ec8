"""The attacks of e2e/attacks on a real cluster with Penstock installed, and four more that no manifest can show:

  manifests  every one with the webhook on and with it away: refused at admission, or Stalled with the same words, or children
             that are harmless
  rights     who may only write StreamingJobs in one namespace reads and starts nothing in another
  port       a pod without the controller's certificate changes nothing in a job
  canary     a secret value and a row value are in no status, Event, log, metric, ConfigMap and no name of a checkpoint's object

    attacks.py --s3 URL --brokers HOST:PORT [--only STAGE]...

Uses the kubectl, the context and PENSTOCK_TESTBED of whoever calls; works in the namespaces e2e-attacks-a, e2e-attacks-b and
e2e-attacks-bounded (which the chart's values of e2e/attacks/bounds.yaml bound); they go with it, and it puts the webhook back.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
A, B, BOUNDED = "e2e-attacks-a", "e2e-attacks-b", "e2e-attacks-bounded"
SECRET, ROW = "CANARYSECRETVALUE7261", "CANARYROWVALUE5140"
RUN = os.getpid()
wrong = []


def say(text):
    print(f"attacks: {text}", flush=True)


def fault(text):
    wrong.append(text)
    say(f"WRONG {text}")


def kubectl(*words, feed=None, check=True, namespace=A):
    command = ["kubectl", *(["--namespace", namespace] if namespace else []), *words]
    done = subprocess.run(command, input=feed, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done


def page_of_pod(pod, page):
    """What a worker shows to who is in its pod."""
    command = ["kubectl", "port-forward", "--namespace", A, "--address", "127.0.0.1", f"pod/{pod}", ":8080"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as forward:
        # One that hangs says nothing.
        over = threading.Timer(20, forward.kill)
        over.start()
        try:
            address = forward.stdout.readline().removeprefix("Forwarding from ").split(" ")[0]
            with urllib.request.urlopen(f"http://{address}{page}", timeout=10) as answer:
                return answer.read().decode()
        finally:
            over.cancel()
            forward.kill()


def get(*words, namespace=A):
    return json.loads(kubectl("get", *words, "-o", "json", namespace=namespace).stdout)


# Stopped by the rules where a manifest is a file; the API server itself takes no such name for an object.
NAMES = ("injection/name-shell", "injection/name-zero-width")

# At least so many are told in the same words by the webhook and the controller: all that these stop, but for a few of long words.
WORD_FOR_WORD = 110

# How the API server says that its schema stops a manifest.
BY_SCHEMA = ("is invalid", "strict decoding", "BadRequest", "error validating")


def webhook(on):
    """Off: the API server asks it only of objects with a label that none has. (Asking one that does not answer takes seconds each.)"""
    selector = {} if on else {"matchLabels": {"e2e-attacks": "asked"}}
    patch = [{"op": "add", "path": "/webhooks/0/objectSelector", "value": selector}]
    kubectl("patch", "validatingwebhookconfiguration", "penstock-operator", "--type=json", "-p", json.dumps(patch), namespace=None)
    time.sleep(3)


def until(what, enough, patience=240):
    end = time.time() + patience
    while not (answer := enough()):
        if time.time() > end:
            raise RuntimeError(f"waited {patience} s in vain until {what}")
        time.sleep(1)
    return answer


class Attack:
    def __init__(self, path):
        self.path, self.head = path, {}
        text = path.read_text()
        for line in text.splitlines():
            if not line.startswith("# ") or ": " not in line:
                break
            name, value = line[2:].split(": ", 1)
            self.head[name] = value
        self.stop = self.head["stop"]
        self.namespace = self.head.get("namespace", A)
        # As it is stored; what is no name never is.
        self.name = re.search(r"^metadata:\n  name: (.+)$", text, re.M)[1]
        words = self.head.get("words", "").split("\\u{")[0]
        plain = {"n": "\n", "r": "\r", "t": "\t"}
        words = re.sub(r"\\(.)", lambda m: plain.get(m[1], m[1]), words)
        self.words = words[:120]
        if not self.words and self.stop != "harmless":
            fault(f"{path} says not in which words it is stopped")
        self.is_name = str(path.with_suffix("")).endswith(NAMES)


def attacks():
    return [Attack(p) for p in sorted((ROOT / "e2e/attacks").glob("*/*.yaml"))]


def children(name, namespace=A):
    kinds = "statefulsets,services,configmaps,serviceaccounts,networkpolicies,poddisruptionbudgets"
    return get(kinds, "-l", f"penstock.dev/job={name}", namespace=namespace)["items"]


def jobs_of_all():
    return {j["metadata"]["name"]: j for namespace in (A, BOUNDED) for j in get("streamingjobs", namespace=namespace)["items"]}


DANGEROUS = {"hostPath", "hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers", "csi", "runtimeClassName", "hostAliases", "shareProcessNamespace"}


def harmless(name):
    """What is wrong with the children of a job; nothing when they are those of any job."""
    made = until(f"{name} has children", lambda: (c := children(name)) and any(o["kind"] == "StatefulSet" for o in c) and c, 60)
    for o in made:
        owners = o["metadata"].get("ownerReferences", [])
        if o["metadata"]["namespace"] != A or [w["name"] for w in owners] != [name]:
            return f"{o['kind']} {o['metadata']['name']} is not the job's own"
    pod = next(o for o in made if o["kind"] == "StatefulSet")["spec"]["template"]["spec"]
    keys = set()

    def collect(value):
        if isinstance(value, dict):
            keys.update(value)
            for member in value.values():
                collect(member)
        elif isinstance(value, list):
            for item in value:
                collect(item)

    collect(pod)
    if keys & DANGEROUS:
        return f"members {keys & DANGEROUS}"
    container = pod["containers"][0]
    context = container["securityContext"]
    checks = {
        "containers": len(pod["containers"]) == 1,
        "command": container["command"] == ["penstock"],
        "privilege": not context.get("privileged") and context["allowPrivilegeEscalation"] is False,
        "capabilities": context["capabilities"] == {"drop": ["ALL"]},
        "user": pod["securityContext"]["runAsNonRoot"] is True,
        "account": pod["serviceAccountName"] == f"{name}-worker",
        "token": pod.get("automountServiceAccountToken") is False,
    }
    failed = [what for what, holds in checks.items() if not holds]
    return f"the pod's {', '.join(failed)}" if failed else None


def denied(stderr):
    """What the webhook said."""
    return stderr.split("denied the request: ", 1)[1].strip() if "denied the request: " in stderr else None


def stalled(job):
    for condition in job.get("status", {}).get("conditions", []):
        if condition["type"] == "Stalled" and condition["status"] == "True":
            return condition["message"]
    return None


def clean():
    for namespace in (A, BOUNDED):
        # Their storage is nowhere: one whose log goes with it would wait for that.
        for job in get("streamingjobs", namespace=namespace)["items"]:
            if job["spec"].get("deletionPolicy") == "Delete":
                kubectl("annotate", "streamingjobs", job["metadata"]["name"], "--overwrite", "penstock.dev/skip-cleanup=true", namespace=namespace)
        kubectl("delete", "streamingjobs", "--all", "--timeout=120s", namespace=namespace)
        gone = lambda namespace=namespace: not get("statefulsets,pods", namespace=namespace)["items"]
        until("the children are gone", gone, 120)


def manifests():
    all_of = attacks()
    kubectl("create", "serviceaccount", "deployer")
    counts = {"webhook": 0, "API server": 0, "controller": 0, "harmless": 0}
    said = {}
    say(f"{len(all_of)} manifests with the webhook on")
    for attack in all_of:
        done = kubectl("create", "-f", str(attack.path), check=False, namespace=attack.namespace)
        message = denied(done.stderr)
        if attack.stop in ("harmless", "controller"):
            if done.returncode != 0:
                fault(f"{attack.name} (webhook on): {done.stderr.strip()[:300]}")
            continue
        if done.returncode == 0 and "PS0075" in attack.head["words"]:
            # The API server waits as long for the webhook as that for the planner; the controller tells then.
            message = until(f"{attack.name} is judged", lambda name=attack.name: stalled(get("streamingjob", name)), 60)
            counts["controller"] += 1
            if attack.words not in message or children(attack.name):
                fault(f"{attack.name} (webhook on): {message[:300]}")
        elif done.returncode == 0:
            fault(f"{attack.name} (webhook on) was stored")
        elif message is not None:
            counts["webhook"] += 1
            said[attack.name] = message
            if attack.stop == "schema" or attack.words not in message:
                fault(f"{attack.name} (webhook on): {message[:300]}; expected {attack.words}")
        else:
            counts["API server"] += 1
            by_schema = attack.stop == "schema" and any(word in done.stderr for word in BY_SCHEMA)
            if not by_schema and not (attack.is_name and "is invalid" in done.stderr):
                fault(f"{attack.name} (webhook on): refused, and not by who should: {done.stderr.strip()[:300]}")
    for attack in all_of:
        if attack.stop == "harmless" and (why := harmless(attack.name)):
            fault(f"{attack.name} (webhook on): {why}")
        elif attack.stop == "harmless":
            counts["harmless"] += 1
        elif attack.stop == "controller":
            message = until(f"{attack.name} is judged", lambda: stalled(get("streamingjob", attack.name)), 60)
            counts["controller"] += 1
            if attack.words not in message or children(attack.name):
                fault(f"{attack.name} (webhook on): {message[:300]}")
    say(f"webhook on: {json.dumps(counts)}")
    clean()

    webhook(False)
    say("the same with the webhook away, and without kubectl's strictness")
    stored = []
    try:
        for namespace in (A, BOUNDED):
            files = [word for attack in all_of if attack.namespace == namespace for word in ("-f", str(attack.path))]
            done = kubectl("create", "--validate=ignore", *files, check=False, namespace=namespace)
            if "denied the request" in done.stderr:
                fault("the webhook is not away")
        there = jobs_of_all()
        for attack in all_of:
            if attack.name in there:
                stored.append(attack)
            elif attack.stop != "schema" and not attack.is_name:
                fault(f"{attack.name} (webhook away) was not stored")

        def judged():
            jobs = jobs_of_all()
            late = [a.name for a in stored if jobs[a.name].get("status", {}).get("observedGeneration") != jobs[a.name]["metadata"]["generation"]]
            return None if late else jobs

        jobs = until("the controller has judged all", judged, 420)
    finally:
        webhook(True)
    same = let = 0
    for attack in stored:
        message = stalled(jobs[attack.name])
        if message is None:
            let += 1
            if attack.stop not in ("harmless", "schema"):
                fault(f"{attack.name} (webhook away) is not stalled")
            elif why := harmless(attack.name):
                fault(f"{attack.name} (webhook away): {why}")
        elif children(attack.name, attack.namespace):
            fault(f"{attack.name} (webhook away) is stalled and has children")
        elif attack.name in said and len(said[attack.name]) < 900 and "and " not in message[-12:]:
            same += 1
            shown = "".join(c for c in said[attack.name] if c.isprintable() or c == "\n")
            told = "".join(c for c in message if c.isprintable() or c == "\n").replace("\ufffd", "")
            if shown.replace("\ufffd", "") != told:
                fault(f"{attack.name}: the webhook said {said[attack.name][:200]}, the controller {message[:200]}")
    if same < WORD_FOR_WORD:
        fault(f"only {same} were compared word for word, not {WORD_FOR_WORD}")
    say(f"webhook away: {len(all_of) - len(stored)} refused by the API server, {len(stored) - let} stalled ({same} compared word for word), {let} let pass with harmless children")
    # One that cannot be read has kept nobody from being judged.
    clean()


def job(name, sql, place, **spec):
    of = {
        "sources": [
            {
                "name": "rows",
                "kafka": {"bootstrapServers": place.brokers, "topics": [f"attacks-{RUN}"], "secretRef": {"name": "kafka"}},
                "format": {"json": {}},
                "columns": spec.pop("columns", [{"name": "id", "type": "BIGINT"}, {"name": "note", "type": "STRING"}]),
            }
        ],
        "sql": sql,
        "sinks": [{"name": "shown", "print": {}}],
        "checkpoint": {
            "interval": "1s",
            "storage": {
                "s3": {"bucket": "streams", "prefix": f"attacks-{RUN}", "region": "us-east-1", "endpoint": place.s3, "pathStyle": True},
                "secretRef": {"name": "s3"},
            },
        },
        "state": {"ttl": "1h", "ephemeral": {"size": "1Gi"}},
        "workers": {"resources": {"requests": {"cpu": "50m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}}},
        "restart": {"maxPerHour": 0},
        **spec,
    }
    return json.dumps({"apiVersion": "penstock.dev/v1alpha1", "kind": "StreamingJob", "metadata": {"name": name}, "spec": of})


def is_reason(name, *reasons):
    conditions = get("streamingjob", name).get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["reason"] in reasons for c in conditions)


def prepare(place):
    kafka = ROOT / "e2e/kafka/kafka.sh"

    def tool(*words, feed=None):
        done = subprocess.run([str(kafka), "tool", *words], input=feed, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{words[0]}: {done.stderr.strip()[-500:]}")

    topic = f"attacks-{RUN}"
    tool("org.apache.kafka.tools.TopicCommand", "--bootstrap-server", place.brokers, "--create", "--topic", topic)
    row = json.dumps({"id": 1, "note": ROW}) + "\n"
    tool("org.apache.kafka.tools.ConsoleProducer", "--bootstrap-server", place.brokers, "--topic", topic, feed=row)
    for name, keys in (
        ("s3", {"access_key_id": "penstock", "secret_access_key": "penstock-secret", "canary": SECRET}),
        ("kafka", {"sasl.username": "u", "sasl.password": SECRET}),
    ):
        kubectl("create", "secret", "generic", name, *(f"--from-literal={k}={v}" for k, v in keys.items()))


class Logs:
    """Follows the log of every pod from its start: one that failed is gone before anybody asks."""

    def __init__(self, folder):
        self.folder, self.following, self.over = pathlib.Path(folder), {}, False
        self.thread = threading.Thread(target=self.follow)
        self.thread.start()

    def follow(self):
        while not self.over:
            for pod in get("pods")["items"]:
                of = (pod["metadata"]["name"], pod["metadata"]["uid"])
                states = [c["state"] for c in pod["status"].get("containerStatuses", [])]
                if of not in self.following and any("running" in s or "terminated" in s for s in states):
                    log = (self.folder / of[1]).open("w")
                    words = ["kubectl", "-n", A, "logs", "--follow", of[0]]
                    self.following[of] = subprocess.Popen(words, stdout=log, stderr=subprocess.DEVNULL)
            time.sleep(0.2)

    def end(self):
        self.over = True
        self.thread.join()
        for child in self.following.values():
            child.terminate()
            child.wait()
        return {name: (self.folder / uid).read_text() for name, uid in self.following}


def canary(place):
    folder = tempfile.TemporaryDirectory()
    logs = Logs(folder.name)
    try:
        shown = canary_jobs(place)
    finally:
        followed = logs.end()
    for name in ("canary-worker-0", "canary-cast-worker-0", "canary-field-worker-0"):
        if name not in followed:
            fault(f"the log of {name} was not seen")
    look(shown | {f"log of {name}": text for name, text in followed.items()})


def canary_jobs(place):
    distinct = "INSERT INTO shown SELECT character_length(d.note) AS l FROM (SELECT DISTINCT note FROM rows) d"
    cast = "INSERT INTO shown SELECT CAST(note AS BIGINT) AS n FROM rows"
    number = [{"name": "note", "type": "BIGINT"}]
    kubectl("create", "-f", "-", feed=job("canary", distinct, place))
    kubectl("create", "-f", "-", feed=job("canary-cast", cast, place))
    kubectl("create", "-f", "-", feed=job("canary-field", "INSERT INTO shown SELECT note FROM rows", place, columns=number))
    until("the job has read the row", lambda: is_reason("canary", "Running"))
    for name in ("canary-cast", "canary-field"):
        until(f"{name} has failed on it", lambda name=name: is_reason(name, "Failed"))
    time.sleep(5)
    pages = {
        "objects and their status": kubectl("get", "streamingjobs,statefulsets,pods,services,serviceaccounts,persistentvolumeclaims", "-o", "yaml").stdout,
        "ConfigMaps": kubectl("get", "configmaps", "-o", "yaml").stdout,
        "Events": kubectl("get", "events", "-o", "yaml").stdout + kubectl("get", "events.events.k8s.io", "-o", "yaml").stdout,
    }
    for pod in get("pods")["items"]:
        name = pod["metadata"]["name"]
        if name.startswith("canary-worker"):
            proxy = f"/api/v1/namespaces/{A}/pods/{name}:8080/proxy"
            pages["metrics of the worker"] = kubectl("get", "--raw", f"{proxy}/metrics", namespace=None).stdout
            refused = kubectl("get", "--raw", f"{proxy}/status", namespace=None, check=False)
            if refused.returncode == 0:
                fault("the status page of the worker is shown to who comes from outside the pod")
            pages["status page of the worker"] = page_of_pod(name, "/status")
    for pod in get("pods", "-l", "app.kubernetes.io/name=penstock-operator", namespace="penstock")["items"]:
        name = pod["metadata"]["name"]
        pages["log of the controller"] = kubectl("logs", name, namespace="penstock").stdout
        ports = {p["name"]: p["containerPort"] for p in pod["spec"]["containers"][0].get("ports", [])}
        if "metrics" in ports:
            raw = f"/api/v1/namespaces/penstock/pods/{name}:{ports['metrics']}/proxy/metrics"
            pages["metrics of the controller"] = kubectl("get", "--raw", raw, namespace=None).stdout
    store = pathlib.Path(os.environ.get("PENSTOCK_TESTBED", pathlib.Path.home() / ".cache/penstock/testbed")) / "s3/run-29800"
    names = [str(p) for p in store.rglob("*") if f"attacks-{RUN}" in str(p)]
    if not names:
        fault(f"no object of a checkpoint is in {store}")
    pages["names of checkpoint objects"] = "\n".join(names)
    return pages


def look(pages):
    for what, text in pages.items():
        if not text:
            fault(f"{what}: nothing to look at")
        for kind, value in (("secret", SECRET), ("row", ROW)):
            if value in text:
                line = next(line for line in text.splitlines() if value in line)
                fault(f"the {kind} is in the {what}: {line.strip()[:300]}")
    say(f"canary: {len(pages)} places looked at: {', '.join(pages)}")


def port(place):
    """With the jobs of `canary`: knocks at their port from a pod of the same namespace."""
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/knock"
        build = {**os.environ, "CGO_ENABLED": "0", "GO111MODULE": "off"}
        subprocess.run(["go", "build", "-o", program, "./e2e/kind/knock/main.go"], cwd=ROOT, env=build, check=True)
        secret = next(s for s in get("secrets")["items"] if s["metadata"]["name"].startswith("canary-cast-c-"))
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "stranger"},
            "spec": {
                "automountServiceAccountToken": False,
                "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
                "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "other", "secret": {"secretName": secret["metadata"]["name"]}}],
                "containers": [
                    {
                        "name": "stranger",
                        "image": place.image,
                        "command": ["sleep", "600"],
                        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "other", "mountPath": "/other"}],
                    }
                ],
            },
        }
        kubectl("create", "-f", "-", feed=json.dumps(pod))
        kubectl("wait", "--for=condition=Ready", "pod/stranger", "--timeout=60s")
        with open(program, "rb") as binary:
            words = ["kubectl", "-n", A, "exec", "-i", "stranger", "--", "sh", "-c", "cat > /tmp/knock && chmod +x /tmp/knock"]
            subprocess.run(words, stdin=binary, check=True)
    before = get("pod", "canary-worker-0")
    done = kubectl("exec", "stranger", "--", "/tmp/knock", f"canary-worker-0.canary-worker.{A}.svc:8443", "/other", check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode != 0 or done.stdout.count(": refused: ") != 16:
        fault(f"a pod without the controller's certificate was not refused for that: {done.stderr.strip()[-300:]}")
    after = get("pod", "canary-worker-0")
    restarts = [p["status"]["containerStatuses"][0]["restartCount"] for p in (before, after)]
    if before["metadata"]["uid"] != after["metadata"]["uid"] or restarts[0] != restarts[1] or not is_reason("canary", "Running"):
        fault("the job is not as it was before the knocking")
    # That there is nobody listening would be the same to see: the controller is heard.
    if not get("streamingjob", "canary")["status"].get("epoch"):
        fault("the controller itself is not heard")
    kubectl("delete", "pod", "stranger", "--grace-period=0", "--force")


def rights(place):
    account = f"--as=system:serviceaccount:{A}:tenant"
    kubectl("create", "serviceaccount", "tenant")
    kubectl("create", "role", "jobs", "--verb=create,get,list,update,patch,delete", "--resource=streamingjobs.penstock.dev")
    kubectl("create", "rolebinding", "jobs", "--role=jobs", f"--serviceaccount={A}:tenant")
    kubectl("create", "secret", "generic", "only-in-b", f"--from-literal=sasl.password={SECRET}", namespace=B)
    everything = "streamingjobs,pods,statefulsets,services,configmaps,secrets,serviceaccounts,persistentvolumeclaims"
    before = kubectl("get", everything, "-o", "name", namespace=B).stdout
    if kubectl("auth", "can-i", "create", "streamingjobs.penstock.dev", account, check=False).stdout.strip() != "yes":
        fault("the tenant may not even write jobs in its own namespace")
    sql = "INSERT INTO shown SELECT id FROM rows WHERE id < 0"
    manifest = json.loads(job("tenant", sql, place))
    attempts = 0
    for namespace, verbs in ((B, ("get", "list", "create", "patch", "delete")), (A, ("create", "get", "list"))):
        for what in everything.split(",") + ["pods/exec", "pods/log", "secrets", "roles.rbac.authorization.k8s.io"]:
            if namespace == A and what == "streamingjobs":
                continue
            for verb in verbs:
                attempts += 1
                asked = kubectl("auth", "can-i", verb, what, account, check=False, namespace=namespace).stdout.strip()
                if asked != "no":
                    fault(f"the tenant may {verb} {what} in {namespace}: {asked}")
    for name, change in (
        ("in the manifest", lambda m: m["metadata"].update(namespace=B)),
        ("in the request", lambda m: None),
    ):
        changed = json.loads(json.dumps(manifest))
        change(changed)
        done = kubectl("create", "-f", "-", account, feed=json.dumps(changed), check=False, namespace=B)
        attempts += 1
        if done.returncode == 0 or "forbidden" not in done.stderr:
            fault(f"the tenant made a job in {B} ({name}): {done.stderr.strip()}")
    # In its own namespace it may; what the job names is looked for there alone.
    manifest["spec"]["sources"][0]["kafka"]["secretRef"]["name"] = "only-in-b"
    kubectl("create", "-f", "-", account, feed=json.dumps(manifest))
    mounted = lambda: [e for e in get("events")["items"] if e["reason"] == "FailedMount" and "only-in-b" in e["message"]]
    event = until("the kubelet misses the Secret", mounted, 120)[0]
    say(f"rights: a Secret of {B} named by a job of {A}: {event['message'][-120:]}")
    if kubectl("get", everything, "-o", "name", namespace=B).stdout != before:
        fault(f"{B} is not as it was")
    say(f"rights: {attempts} attempts in {A} and {B}, none allowed")


STAGES = ("manifests", "canary", "port", "rights")


def main():
    read = argparse.ArgumentParser()
    read.add_argument("--s3", required=True)
    read.add_argument("--brokers", required=True)
    read.add_argument("--image", default="penstock:dev", help="any image of the cluster with a shell")
    read.add_argument("--only", action="append", choices=STAGES)
    place = read.parse_args()
    chosen = [s for s in STAGES if not place.only or s in place.only or (s == "canary" and "port" in place.only)]
    for namespace in (A, B, BOUNDED):
        kubectl("delete", "namespace", namespace, "--ignore-not-found", "--timeout=120s", namespace=None)
        kubectl("create", "namespace", namespace, namespace=None)
        kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted", namespace=None)
    try:
        if set(chosen) & {"canary", "rights"}:
            prepare(place)
        for stage in chosen:
            began = time.time()
            {"manifests": lambda: manifests(), "canary": lambda: canary(place), "port": lambda: port(place), "rights": lambda: rights(place)}[stage]()
            say(f"{stage} took {time.time() - began:.0f} s")
    finally:
        for namespace in (A, B, BOUNDED):
            kubectl("delete", "namespace", namespace, "--wait=false", namespace=None, check=False)
    if wrong:
        print(f"FAIL attacks: {len(wrong)} wrong")
        sys.exit(1)
    print(f"PASS attacks: {', '.join(chosen)}")


main()
