#!/usr/bin/env python3
"""Flink's side of the benchmark "elasticity": a standalone session cluster whose TaskManagers come, go and are killed.

One JobManager and N TaskManagers, each a process of its own from the jars of pom.xml, run one SQL job from Kafka to Kafka with
its state in RocksDB. Each sub-command does one thing to the cluster of folder --dir, prints one line of JSON and ends with 0, or
prints the reason to stderr and ends with 1. Who feeds the topics, watches the output and judges is not here.

A command returns when the thing is done to the cluster, not when the job runs again: `state` tells that. Only `up` waits until
the job runs, and `worker-remove` until the job has left the worker that goes. A worker is known by its index, which never changes.
"""
import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(here))
from nexmark import OPENS, flink_jars  # noqa: E402

JOBMANAGER = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
TASKMANAGER = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
JOBMANAGER_JVM = ["-Xms512m", "-Xmx512m", "-XX:+UseSerialGC"]  # coordinates only: a small heap, no collector threads
# What Flink's own scripts would pass for the memory below: heap is task + framework, direct is framework off-heap + network.
TASKMANAGER_JVM = ["-Xms1g", "-Xmx1g", "-XX:MaxDirectMemorySize=192m", "-XX:MaxMetaspaceSize=256m", "-XX:+UseG1GC"]


def settings(folder, workers, slots, spares, interval, rpc, rest):
    """Every setting that is not Flink's default, or matters here. The processes read them as config.yaml, the client gets them too."""
    return {
        "jobmanager.rpc.address": "127.0.0.1", "jobmanager.rpc.port": rpc, "rest.address": "127.0.0.1", "rest.port": rest,
        "taskmanager.host": "127.0.0.1", "parallelism.default": workers * slots, "taskmanager.numberOfTaskSlots": slots,
        # Memory of a TaskManager: 1 GB heap, 512 MB for RocksDB; given part by part, as no start script works it out.
        "taskmanager.cpu.cores": 1,
        "taskmanager.memory.task.heap.size": "896m", "taskmanager.memory.framework.heap.size": "128m",
        "taskmanager.memory.task.off-heap.size": "0", "taskmanager.memory.framework.off-heap.size": "128m",
        "taskmanager.memory.network.min": "64m", "taskmanager.memory.network.max": "64m",
        "taskmanager.memory.managed.size": "512m", "taskmanager.memory.jvm-metaspace.size": "256m",
        "taskmanager.memory.jvm-overhead.min": "192m", "taskmanager.memory.jvm-overhead.max": "192m",
        # The only scheduler that rescales a running job.
        "jobmanager.scheduler": "adaptive",
        # Rescale as soon as slots or requirements change, not 30 s after the last time (default).
        "jobmanager.adaptive-scheduler.executing.cooldown-after-rescaling": "0s",
        # And when fewer slots came than wanted, not 60 s later (default).
        "jobmanager.adaptive-scheduler.executing.resource-stabilization-timeout": "0s",
        # After a loss go on at once with the workers left, as reactive mode does, and rescale when the replacement is there.
        # Waiting for it (10s by default) restores from its own disk and restarts once, but the outputs wait for a new JVM.
        # A spare's slot comes at once, yet not in the same instant. Without spares the job may start with fewer slots, then rescale.
        "jobmanager.adaptive-scheduler.submission.resource-stabilization-timeout": "1s" if spares else "0s",
        # Keep each subtask where its local state is; Flink's documentation says to turn this off with local recovery.
        "jobmanager.adaptive-scheduler.prefer-minimal-taskmanagers": "false",
        # A dead process refuses the heartbeat's connection: two refusals tell it within a second (default 2 x 10 s).
        "heartbeat.interval": "500ms", "heartbeat.rpc-failure-threshold": 2,
        # A process that only pauses (collector, busy machine) is not dead: ample time.
        "heartbeat.timeout": "10s",
        # A new TaskManager that comes before the old one is forgotten asks again soon (defaults 10 s and 30 s).
        "cluster.registration.error-delay": "200ms", "cluster.registration.refused-registration-delay": "200ms",
        # Restart without end and without a pause (default: 1 s, and one attempt).
        "restart-strategy.type": "fixed-delay", "restart-strategy.fixed-delay.attempts": 2147483647, "restart-strategy.fixed-delay.delay": "1ms",
        "execution.checkpointing.interval": interval, "execution.checkpointing.mode": "EXACTLY_ONCE",
        "execution.checkpointing.storage": "filesystem", "execution.checkpointing.dir": f"file://{folder}/checkpoints",
        # Only what changed is written, each second.
        "state.backend.type": "rocksdb", "execution.checkpointing.incremental": "true",
        # A checkpoint that fails is no reason to restart.
        "execution.checkpointing.tolerable-failed-checkpoints": 1000,
        # Restore from the worker's own disk. Its folder and its identity outlive the process, so a replacement can too.
        "execution.state-recovery.from-local": "true", "execution.checkpointing.local-backup.enabled": "true",
        "process.working-dir": f"{folder}/work",
        # Point reads of keys over many files: the filter spares most of them.
        "state.backend.rocksdb.use-bloom-filter": "true",
        # A rescale clips and takes over whole files instead of copying rows one by one.
        "state.backend.rocksdb.use-ingest-db-restore-mode": "true",
        # And drops files outside of its key groups at once.
        "state.backend.rocksdb.rescaling.use-delete-files-in-range": "true",
        # Rows are not kept by any operator here: no copies between chained ones.
        "pipeline.object-reuse": "true",
        # No mini-batch: every change is an output, and 6 million keys at random leave nothing to fold.
        "table.local-time-zone": "UTC",
    }


def script(brokers, topic_in, topic_out, run):
    """POOLING: transactional ids are used again, so a restart lists and aborts a few instead of probing one per checkpoint."""
    return f"""CREATE TABLE src (k BIGINT, t BIGINT, v STRING) WITH ('connector'='kafka', 'topic'='{topic_in}',
  'properties.bootstrap.servers'='{brokers}', 'properties.group.id'='{run}', 'scan.startup.mode'='earliest-offset', 'format'='json');
CREATE TABLE snk (k BIGINT, n BIGINT, t BIGINT, v STRING, PRIMARY KEY (k) NOT ENFORCED) WITH ('connector'='upsert-kafka', 'topic'='{topic_out}',
  'properties.bootstrap.servers'='{brokers}', 'key.format'='json', 'value.format'='json', 'properties.transaction.timeout.ms'='900000',
  'sink.delivery-guarantee'='exactly-once', 'sink.transactional-id-prefix'='{run}', 'sink.transaction-naming-strategy'='POOLING');
INSERT INTO snk SELECT k, COUNT(*) AS n, MAX(t) AS t, MAX(v) AS v FROM src GROUP BY k;
"""


class Cluster:
    """What is known of the cluster between two commands: D/cluster.json."""

    def __init__(self, folder, known=None):
        self.folder = os.path.abspath(folder)
        self.file = os.path.join(self.folder, "cluster.json")
        if known is None:
            if not os.path.exists(self.file):
                fail(f"no cluster in {self.folder}")
            known = json.load(open(self.file))
        self.known = known

    def save(self):
        with open(self.file + ".new", "w") as f:
            json.dump(self.known, f, indent=1)
        os.replace(self.file + ".new", self.file)

    # ---- processes

    def start(self, name, jvm, main, *words):
        """One JVM that outlives this program, its output in D/log; answers its process id."""
        with open(os.path.join(self.folder, "log", name), "ab") as log:
            return subprocess.Popen(
                ["java", *jvm, *OPENS, "-Dlog.level=info", f"-Dlog4j2.configurationFile={here}/log4j2.properties",
                 "-cp", f"{self.known['libs']}/*", main, "--configDir", os.path.join(self.folder, "conf"), *words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self.folder).pid

    def start_worker(self, index):
        """The name is the worker's identity: it finds its folder and its local state again under the same one."""
        pid = self.start(f"taskmanager-{index}", TASKMANAGER_JVM, TASKMANAGER, "-D", f"taskmanager.resource-id=worker-{index}")
        self.known["workers"][str(index)] = pid
        self.save()
        return pid

    def lives(self, pid):
        """Whether that process is still there and ours: process ids are used again."""
        try:
            state = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0]
            return state != "Z" and self.folder.encode() in open(f"/proc/{pid}/cmdline", "rb").read()
        except OSError:
            return False

    def all_live(self):
        return all(map(self.lives, self.pids())) or fail(f"a process ended by itself: see {self.folder}/log")

    def pids(self):
        return [*self.known["workers"].values(), self.known["jobmanager"]]

    def end(self, pid, how):
        if self.lives(pid):
            os.kill(pid, how)

    def gone(self, pids, seconds):
        until(seconds, lambda: not any(self.lives(pid) for pid in pids))
        for pid in pids:
            self.end(pid, signal.SIGKILL)

    # ---- the REST interface

    def rest(self, path, method="GET", body=None):
        request = urllib.request.Request(f"http://127.0.0.1:{self.known['rest']}{path}", method=method,
                                         data=None if body is None else json.dumps(body).encode(), headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read() or b"{}")

    def job(self, rest=""):
        return self.rest(f"/jobs/{self.known['job']}{rest}")

    def runs(self, parallelism):
        """Whether every subtask of the job runs, that many of each vertex."""
        job = self.job()
        return job["state"] == "RUNNING" and all(v["parallelism"] == v["tasks"]["RUNNING"] == parallelism for v in job["vertices"])

    def used(self):
        """The identities of the workers that the job has subtasks on."""
        return {s["taskmanager-id"] for v in self.job()["vertices"] for s in self.job(f"/vertices/{v['id']}")["subtasks"]}

    def parallelism(self):
        return (len(self.known["workers"]) - self.known["spares"]) * self.known["slots"]

    def require(self, parallelism):
        """The adaptive scheduler takes the slots there are up to this many, so it must be told of more."""
        body = {v["id"]: {"parallelism": {"lowerBound": 1, "upperBound": parallelism}} for v in self.job()["vertices"]}
        self.rest(f"/jobs/{self.known['job']}/resource-requirements", "PUT", body)


# ---- commands

def up(a):
    folder = os.path.abspath(a.dir)
    if os.path.exists(os.path.join(folder, "cluster.json")):
        fail(f"{folder} has a cluster: down first")
    for name in ("conf", "log", "classes", "checkpoints", "work"):
        os.makedirs(os.path.join(folder, name), exist_ok=True)
    rpc, rest = free_ports(2)
    used = settings(folder, a.workers, a.slots, a.spares, a.interval, rpc, rest) | dict(a.set)
    with open(os.path.join(folder, "conf", "config.yaml"), "w") as f:
        f.writelines(f"{key}: {json.dumps(value)}\n" for key, value in used.items())
    cluster = Cluster(folder, {"libs": flink_jars(os.path.abspath(a.testbed)), "rest": rest, "slots": a.slots, "spares": a.spares, "job": None, "jobmanager": None,
                               "workers": {}, "next": a.workers + a.spares})
    cluster.known["jobmanager"] = cluster.start("jobmanager", JOBMANAGER_JVM, JOBMANAGER, "--executionMode", "cluster")
    for index in range(a.workers + a.spares):
        cluster.start_worker(index)
    try:
        until(120, lambda: cluster.all_live() and len(cluster.rest("/taskmanagers")["taskmanagers"]) == a.workers + a.spares) or fail(
            f"the TaskManagers did not come: see {folder}/log")
        cluster.known["job"] = submit(cluster, a, used)
        cluster.save()
        until(120, lambda: cluster.runs(cluster.parallelism())) or fail(f"the job does not run: see {folder}/log")
    except BaseException:
        kill_all(cluster)
        raise
    return {"jobmanager": cluster.known["jobmanager"], "workers": cluster.known["workers"], "rest": rest, "job": cluster.known["job"],
            "jvm": {"jobmanager": JOBMANAGER_JVM, "taskmanager": TASKMANAGER_JVM}, "settings": used}


def submit(cluster, a, used):
    """Plans the SQL in a JVM of its own, gives the job to the cluster; answers its id."""
    folder, libs = cluster.folder, cluster.known["libs"]
    sql = os.path.join(folder, "job.sql")
    with open(sql, "w") as f:
        f.write(script(a.brokers, a.topic_in, a.out, "elastic-" + a.out))
    subprocess.run(["javac", "-nowarn", "-cp", f"{libs}/*", "-d", f"{folder}/classes", f"{here}/src/FlinkQ.java"], check=True)
    client = subprocess.run(["java", "-Xmx512m", *OPENS, f"-Dlog4j2.configurationFile={here}/log4j2.properties", "-cp", f"{libs}/*:{folder}/classes", "FlinkQ", sql,
                             "execution.target=remote", *(f"{key}={value}" for key, value in used.items())], capture_output=True, text=True)
    job = re.search(r"^JOB (\w+)$", client.stdout, re.M)
    return job[1] if job else fail(f"the job was not accepted: {(client.stdout + client.stderr)[-2000:]}")


def worker_add(a):
    cluster = Cluster(a.dir)
    index = cluster.known["next"]
    cluster.known["next"] += 1
    at = int(time.time() * 1000)
    pid = cluster.start_worker(index)
    cluster.require(cluster.parallelism())
    return {"index": index, "pid": pid, "at": at, "parallelism": cluster.parallelism()}


def worker_kill(a):
    cluster = Cluster(a.dir)
    old = cluster.known["workers"].get(str(a.index)) or fail(f"no worker {a.index}")
    if not cluster.lives(old):
        fail(f"worker {a.index} is dead already")
    at = int(time.time() * 1000)
    os.kill(old, signal.SIGKILL)
    return {"index": a.index, "killed": old, "at": at, "pid": cluster.start_worker(a.index)}


def worker_remove(a):
    cluster = Cluster(a.dir)
    workers, parallelism = cluster.known["workers"], cluster.parallelism() - cluster.known["slots"]
    if parallelism < 1:
        fail("the last worker stays")
    at = int(time.time() * 1000)
    cluster.require(parallelism)
    until(120, lambda: cluster.runs(parallelism)) or fail(f"the job did not come to run with parallelism {parallelism}")
    used = cluster.used()
    idle = [index for index in workers if f"worker-{index}" not in used]
    index = idle[-1] if idle else list(workers)[-1]
    pid = workers.pop(index)
    cluster.save()
    cluster.end(pid, signal.SIGTERM)
    return {"index": int(index), "pid": pid, "at": at, "idle": bool(idle), "parallelism": parallelism}


def state(a):
    cluster = Cluster(a.dir)
    job, last = cluster.job(), cluster.job("/checkpoints")["latest"]["completed"]
    counts = {m["id"]: int(m["value"]) for m in cluster.job("/metrics?get=numRestarts,numRescales")}
    return {"state": job["state"], "parallelism": min(v["parallelism"] for v in job["vertices"]),
            "running": min(v["tasks"]["RUNNING"] for v in job["vertices"]),
            "workers": {index: {"pid": pid, "lives": cluster.lives(pid)} for index, pid in cluster.known["workers"].items()},
            "restarts": counts.get("numRestarts"), "rescales": counts.get("numRescales"),
            "checkpoint": last and {"id": last["id"], "size": last["state_size"], "written": last["checkpointed_size"],
                                    "duration_ms": last["end_to_end_duration"], "at": last["latest_ack_timestamp"]}}


def down(a):
    cluster = Cluster(a.dir)
    try:
        cluster.rest(f"/jobs/{cluster.known['job']}?mode=cancel", "PATCH")
        until(30, lambda: cluster.job()["state"] in ("CANCELED", "FAILED", "FINISHED"))
    except OSError as error:
        print(f"elastic: the job could not be cancelled: {error}", file=sys.stderr)
    return {"ended": kill_all(cluster)}


def kill_all(cluster):
    pids = cluster.pids()
    for pid in pids:
        cluster.end(pid, signal.SIGTERM)
    cluster.gone(pids, 10)
    for name in ("checkpoints", "work"):
        shutil.rmtree(os.path.join(cluster.folder, name), ignore_errors=True)
    if os.path.exists(cluster.file):
        os.remove(cluster.file)
    return pids


# ---- parts

def until(seconds, holds):
    """Asks again until it holds; a process that does not answer yet is asked again too."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if holds():
                return True
        except OSError:  # also what urllib raises
            pass
        time.sleep(0.1)
    return False


def free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


def fail(reason):
    raise SystemExit(f"elastic: {reason}")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = ap.add_subparsers(required=True)

    def command(name, does):
        p = commands.add_parser(name)
        p.set_defaults(does=does)
        p.add_argument("--dir", required=True)
        return p

    p = command("up", up)
    p.add_argument("--testbed", required=True, help="where flink/libs has Flink's jars, or is to have them")
    p.add_argument("--brokers", required=True)
    p.add_argument("--in", required=True, dest="topic_in")
    p.add_argument("--out", required=True)
    p.add_argument("--workers", type=int, required=True)
    p.add_argument("--slots", type=int, default=1)
    p.add_argument("--spares", type=int, default=0, help="workers more than the job needs, which wait for one to die")
    p.add_argument("--interval", default="1s")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", type=lambda text: text.split("=", 1), help="one more setting, or another value")
    command("worker-add", worker_add)
    command("worker-kill", worker_kill).add_argument("--index", type=int, required=True)
    command("worker-remove", worker_remove)
    command("state", state)
    command("down", down)
    a = ap.parse_args()
    try:
        print(json.dumps(a.does(a)))
    except urllib.error.HTTPError as error:
        fail(f"{error.url}: {error.code} {error.read().decode(errors='replace')[:500]}")
    except (OSError, subprocess.CalledProcessError) as error:
        fail(error)


if __name__ == "__main__":
    main()
