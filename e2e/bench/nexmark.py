#!/usr/bin/env python3
"""Nexmark side by side: Kafka to Kafka, exactly once, the same rows and the same SQL, one engine after the other.

For each query the engines take turns, so many repeats each. Before any time counts their outputs are compared: the same
multiset of rows, and not an empty one. The figure is events per CPU-second of the engine's whole process group, net of the
same job over 1,000 events (what starting, planning and compiling cost); the broker's own CPU is apart. The last line is the
verdict against the floors. `./dev bench nexmark` calls this; --help lists the options.
"""
import argparse
import json
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time

here = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, here)
import queries as nexmark  # noqa: E402

SMALL = 1_000
SEED = 1
# The engine as it is; with state in memory only; with 30 ms more for each write to the checkpoint storage; as two workers of one slot
# each instead of one of two; with four slots.
PENSTOCK = ("penstock", "penstock-memory", "penstock-slow", "penstock-2x1", "penstock-4")
SLOTS = {"penstock-2x1": 1, "penstock-4": 4}
# Throughput of two workers of one slot over that of one of two, and of a job with one hot key over one without.
SPREAD, HOT = 0.8, 0.7
# Events per net CPU-second over Flink's, and peak memory at most a third of its.
FLOORS = {"q0": 3, "q1": 3, "q2": 6, "q5": 10, "q7t": 10, "q8": 6}
MEMORY_SHARE = 1 / 3
OPENS = ["--add-exports=java.base/sun.net.util=ALL-UNNAMED", "--add-exports=java.management/sun.management=ALL-UNNAMED"] + [
    f"--add-opens=java.base/{p}=ALL-UNNAMED" for p in
    ("java.lang", "java.net", "java.io", "java.nio", "sun.nio.ch", "java.lang.reflect", "java.text", "java.time", "java.util",
     "java.util.concurrent", "java.util.concurrent.atomic", "java.util.concurrent.locks")]


def say(text):
    print(text, flush=True)


def flink_jars(testbed):
    """The folder of Flink's jars, fetched when pom.xml is another than they were fetched by."""
    libs, pom = os.path.join(testbed, "flink", "libs"), os.path.join(here, "flink", "pom.xml")
    stamp = os.path.join(libs, ".pom")
    if not (os.path.exists(stamp) and open(stamp).read() == open(pom).read()):
        print("fetching Flink's jars from Maven Central", file=sys.stderr, flush=True)
        shutil.rmtree(libs, ignore_errors=True)
        subprocess.run(["mvn", "-B", "-ntp", "-q", "-f", pom, f"-Dmaven.repo.local={testbed}/kafka/m2", "dependency:copy-dependencies",
                        "-DincludeScope=runtime", f"-DoutputDirectory={libs}"], check=True)
        shutil.copy(pom, stamp)
    return libs


class Bench:
    def __init__(self, a):
        self.a = a
        self.testbed = os.path.join(a.cache, "testbed")
        self.work = os.path.join(self.testbed, "work", f"nexmark-{os.getpid()}")
        os.makedirs(self.work, exist_ok=True)
        self.e2e = os.path.join(a.bin, "penstock-e2e")
        self.brokers = f"127.0.0.1:{a.kafka_port}"
        self.klibs = os.path.join(self.testbed, "kafka", "libs")
        self.flibs = os.path.join(self.testbed, "flink", "libs")
        self.classes = os.path.join(self.testbed, "flink", "classes")
        self.runs = 0
        self.results = open(os.path.join(self.work, "results.jsonl"), "a")

    # ---- parts

    def install(self):
        if "flink" in self.a.engines:
            flink_jars(self.testbed)
        os.makedirs(self.classes, exist_ok=True)
        for source, libs, needed in (("Gen", self.klibs, True), ("FlinkQ", self.flibs, "flink" in self.a.engines)):
            if needed:
                subprocess.run(["javac", "-nowarn", "-cp", f"{libs}/*", "-d", self.classes, os.path.join(here, "flink", "src", f"{source}.java")], check=True)
        shutil.copy(os.path.join(here, "flink", "log4j2.properties"), self.classes)

    def kafka(self, *words):
        env = dict(os.environ, PENSTOCK_TESTBED=self.testbed, KAFKA_HEAP="1g",
                   KAFKA_EXTRA="log.segment.bytes=268435456 log.retention.ms=-1")
        subprocess.run([os.path.join(here, "..", "kafka", "kafka.sh"), *words, str(self.a.kafka_port)], check=True, env=env)

    def topic(self, action, name):
        subprocess.run([self.e2e, "topic", action, "--brokers", self.brokers, name], check=True, stdout=subprocess.DEVNULL)

    def generate(self):
        for topic, events in (("nexmark", self.a.events), ("nexmark-small", SMALL)):
            self.topic("create", topic)
            out = subprocess.run(["java", "-Xmx1g", "-XX:+UseSerialGC", "-cp", f"{self.klibs}/*:{self.classes}", "Gen", self.brokers, topic, str(events), str(SEED)],
                                 check=True, capture_output=True, text=True).stdout
            say(f"nexmark: {topic}: {out.strip().splitlines()[-1]}")

    def bare(self):
        """What the client library alone costs: the same events read to their end and thrown away. No engine on it is cheaper."""
        rates = []
        for _ in range(self.a.repeats):
            before = children_cpu()
            out = subprocess.run([self.e2e, "drain", "--brokers", self.brokers, "--topic", "nexmark"], check=True, capture_output=True, text=True).stdout
            assert f"records={self.a.events} " in out, out
            rates.append(self.a.events / (children_cpu() - before) / 1000)
        say(f"nexmark: librdkafka alone, reading and doing nothing: {statistics.median(rates):.0f} thousand events per CPU-second ({min(rates):.0f} … {max(rates):.0f})")

    # ---- one run

    def command(self, engine, query, topic, out, run):
        folder = os.path.join(self.work, run)
        os.makedirs(folder)
        if engine in PENSTOCK:
            manifest = os.path.join(folder, "job.yaml")
            open(manifest, "w").write(nexmark.penstock(query, self.brokers, topic, out, run, folder + "/checkpoint", self.a.trigger, SLOTS.get(engine, 2)))
            workers = ["--workers", "2"] if engine == "penstock-2x1" else []
            return [os.path.join(self.a.bin, "penstock"), "run", manifest, "--state", "memory" if engine == "penstock-memory" else folder + "/state", "--memory", self.a.memory, *workers]
        script = os.path.join(folder, "job.sql")
        open(script, "w").write(nexmark.flink(query, self.brokers, topic, out, run))
        flags, settings = flink_options(folder + "/checkpoint")
        return ["java", *flags, *OPENS, f"-Dlog4j2.configurationFile={self.classes}/log4j2.properties", "-cp", f"{self.flibs}/*:{self.classes}", "FlinkQ", script, *settings]

    def run(self, engine, query, small, rows=None):
        """Runs one job to its end; answers what it cost. The output is summed up and then deleted."""
        self.runs += 1
        run = f"{engine}-{query}-{'small' if small else 'big'}-{self.runs}"
        out = f"out-{run}"
        self.topic("create", out)
        command = self.command(engine, query, "nexmark-small" if small else "nexmark", out, run)
        log = os.path.join(self.work, run, "log")
        before = children_cpu()
        began = time.monotonic()
        with open(log, "wb") as f:
            env = dict(os.environ, PENSTOCK_PUT_DELAY_MS="30") if engine == "penstock-slow" else None
            child = subprocess.Popen(command, env=env, stdout=f, stderr=f, stdin=subprocess.DEVNULL, start_new_session=True, cwd=os.path.join(self.work, run))
        group = Group(child.pid)
        try:
            status = child.wait(timeout=self.a.limit)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            status = "over the limit"
        wall = time.monotonic() - began
        group.stop()
        # What the child and all that it waited for used; members of its group that it left behind come from /proc.
        cpu = children_cpu() - before + group.strays()
        if status != 0:
            tail = open(log, errors="replace").read()[-2000:]
            raise RuntimeError(f"{run} ended with {status}; {log} ends with:\n{tail}")
        epochs = re.search(r"(\d+) epochs: p50 (\d+) ms, p99 (\d+) ms", open(log, errors="replace").read())
        dump = subprocess.run([self.e2e, "dump", "--brokers", self.brokers, "--topic", out] + (["--rows", rows] if rows else []),
                              check=True, capture_output=True, text=True).stdout.strip()
        self.topic("delete", out)
        shutil.rmtree(os.path.join(self.work, run), ignore_errors=True)
        found = dict(re.findall(r"(\w+)=(\w+)", dump))
        result = {"run": run, "engine": engine, "query": query, "small": small, "events": SMALL if small else self.a.events, "cpu": round(cpu, 2),
                  "wall": round(wall, 2), "peak_mb": group.peak // 1024, "rows": int(found["rows"]), "sum": found["sum"], "load": os.getloadavg()[0],
                  "epochs": [int(n) for n in epochs.groups()] if epochs else None}
        self.results.write(json.dumps(result) + "\n")
        self.results.flush()
        say(f"  {run}: {result['cpu']} CPU-s, {result['wall']} s, {result['peak_mb']} MB, {result['rows']} rows, sum {result['sum']}"
            + ("; {} epochs, p50 {} ms, p99 {} ms".format(*result["epochs"]) if result["epochs"] else ""))
        return result

    # ---- the whole

    def query(self, query):
        """All runs of one query, interleaved. Answers per engine the rates, and whether the outputs are the same."""
        a, small, big = self.a, {}, {}
        say(f"nexmark: {query}")
        for repeat in range(a.repeats):
            for engine in a.engines:
                if repeat < 2:  # what starting costs hardly varies: two are enough, the lesser counts
                    small.setdefault(engine, []).append(self.run(engine, query, True))
                big.setdefault(engine, []).append(self.run(engine, query, False))
        sums = {(r["rows"], r["sum"]) for runs in big.values() for r in runs}
        same = len(sums) == 1 and min(rows for rows, _ in sums) > 0
        # Also the small outputs must agree: a difference in them is easier to look at.
        same &= len({(r["rows"], r["sum"]) for runs in small.values() for r in runs}) == 1
        rates = {}
        for engine in a.engines:
            start = min(r["cpu"] for r in small[engine])
            rates[engine] = {
                "net": [(a.events - SMALL) / max(r["cpu"] - start, 0.01) for r in big[engine]],
                "wall": statistics.median((a.events - SMALL) / r["wall"] for r in big[engine]),
                "peak": max(r["peak_mb"] for r in big[engine]), "start": start}
        return same, sums, rates

    def go(self):
        a = self.a
        self.install()
        if "flink" in a.engines:
            say("nexmark: Flink runs with")
            for line in open(os.path.join(here, "flink", "options.txt")):
                if not line.startswith("#"):
                    say("    " + line.rstrip())
        self.kafka("wipe")
        self.kafka("start")
        failures, lines, alone = [], [], {}
        try:
            self.generate()
            self.bare()
            for query in a.queries:
                try:
                    same, sums, rates = self.query(query)
                except RuntimeError as error:
                    say(f"nexmark: {query}: {error}")
                    failures.append(f"{query} did not end")
                    continue
                if not same:
                    failures.append(f"{query} outputs differ or are empty: {sorted(sums)}")
                for engine, r in rates.items():
                    net = [x / 1000 for x in r["net"]]
                    median = statistics.median(net)
                    lines.append(f"{query:4} {engine:15} {median:8.1f}  {min(net):8.1f} … {max(net):<8.1f} {r['wall'] / 1000:8.1f} {r['peak']:7} MB {r['start']:7.1f} s"
                                 f"   {'same' if same else 'DIFFERENT'}")
                if {"penstock", "flink"} <= set(rates):
                    ratio = statistics.median(rates["penstock"]["net"]) / statistics.median(rates["flink"]["net"])
                    memory = rates["penstock"]["peak"] / rates["flink"]["peak"]
                    lines.append(f"{query:4} ratio           {ratio:8.2f}x of at least {FLOORS.get(query, 0)}x; memory {memory:.2f} of at most {MEMORY_SHARE:.2f}")
                    if ratio < FLOORS.get(query, 0):
                        failures.append(f"{query} {ratio:.2f}x < {FLOORS[query]}x")
                    if memory > MEMORY_SHARE:
                        failures.append(f"{query} memory {memory:.2f} > {MEMORY_SHARE:.2f}")
                if {"penstock", "penstock-2x1"} <= set(rates):
                    one, two = rates["penstock"], rates["penstock-2x1"]
                    ratio = two["wall"] / one["wall"]
                    more = statistics.median(one["net"]) / statistics.median(two["net"]) - 1
                    lines.append(f"{query:4} two workers of one slot: {ratio:.2f} of the throughput of one of two slots (at least {SPREAD}); "
                                 f"the network and the second process cost {more * 100:.0f} % CPU")
                    if ratio < SPREAD:
                        failures.append(f"{query} {ratio:.2f} < {SPREAD} as two workers")
                alone[query] = rates
                if query == "hot" and "even" in alone:
                    for engine in a.engines:
                        ratio = rates[engine]["wall"] / alone["even"][engine]["wall"]
                        lines.append(f"hot  {engine:15} {ratio:.2f} of the throughput without a hot key (at least {HOT})")
                        if engine in PENSTOCK and ratio < HOT:
                            failures.append(f"{engine} {ratio:.2f} < {HOT} with a hot key")
                if {"penstock", "penstock-memory"} <= set(rates):
                    disk, memory = (1 / statistics.median(rates[e]["net"]) for e in ("penstock", "penstock-memory"))
                    lines.append(f"{query:4} RocksDB costs {(disk / memory - 1) * 100:.0f} % CPU over state in memory (aim: at most 10 %)")
        finally:
            self.kafka("wipe")
            self.results.close()
        say(f"\n{a.events} events, {a.repeats} repeats, thousand events per net CPU-second")
        say("query engine            median       least … most        wall k/s    peak   start CPU   outputs")
        for line in lines:
            say(line)
        if failures:
            say(f"FAIL bench nexmark: {'; '.join(failures)} (runs in {self.work}/results.jsonl)")
            return 1
        say(f"PASS bench nexmark: {' '.join(a.queries)} with {' and '.join(a.engines)} over {a.events} events")
        return 0


def flink_options(checkpoint):
    """JVM flags and Flink settings of options.txt."""
    os.makedirs(checkpoint, exist_ok=True)
    flags, settings = [], []
    for line in open(os.path.join(here, "flink", "options.txt")):
        line = line.strip().replace("${CHECKPOINT}", checkpoint)
        if line and not line.startswith("#"):
            (flags if line.startswith("-") else settings).append(line)
    return flags, settings


def children_cpu():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Group:
    """Watches a session while it runs, the groups of its workers too: the peak of its resident memory, and members that outlive their leader."""

    def __init__(self, leader):
        self.leader, self.peak, self.over = leader, 0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def members(self):
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    fields = open(f"/proc/{name}/stat").read().rsplit(")", 1)[1].split()
                except OSError:
                    continue
                if int(fields[3]) == self.leader:
                    yield name, fields

    def watch(self):
        while not self.over.wait(0.2):
            total = 0
            for name, _ in self.members():
                try:
                    total += sum(int(l.split()[1]) for l in open(f"/proc/{name}/status") if l.startswith("VmHWM"))
                except OSError:
                    continue
            self.peak = max(self.peak, total)

    def stop(self):
        self.over.set()
        self.thread.join()

    def strays(self):
        tick, cpu = os.sysconf("SC_CLK_TCK"), 0
        for name, fields in self.members():
            cpu += (int(fields[11]) + int(fields[12])) / tick
            os.kill(int(name), signal.SIGKILL)
        return cpu


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = lambda text: text.split(",")  # noqa: E731
    ap.add_argument("--engines", type=listed, default=["penstock", "flink"])
    ap.add_argument("--queries", type=listed, default=["q0", "q1", "q2", "q5", "q7t", "q8"])
    ap.add_argument("--events", type=int, default=10_000_000)
    ap.add_argument("--repeats", type=int, default=3)
    ap.add_argument("--memory", default="512Mi", help="Penstock's budget")
    ap.add_argument("--trigger", default="{availableNow: {drain: true}}", help="Penstock's trigger, as YAML")
    ap.add_argument("--limit", type=int, default=600, help="seconds that one run may take")
    ap.add_argument("--kafka-port", type=int, default=29492)
    ap.add_argument("--bin", required=True, help="the folder with penstock and penstock-e2e")
    ap.add_argument("--cache", required=True)
    a = ap.parse_args()
    for given, known in ((a.queries, nexmark.QUERIES), (a.engines, (*PENSTOCK, "flink"))):
        for name in given:
            if name not in known:
                ap.error(f"no such query or engine: {name}")
    return Bench(a).go()


if __name__ == "__main__":
    sys.exit(main())
