#!/usr/bin/env python3
"""Places where a job cannot keep its log or state: a full disk, a read-only folder, a store that ignores `If-None-Match`.

  places.py --penstock target/release/penstock

Each must stop the job with a sentence and a code, and lose nothing: with the place mended the same job goes on, and its
output holds every row once. The disks are small file systems in memory, mounted in a mount namespace of this script's own,
which needs root. The last line says PASS or FAIL, and so does the exit status.
"""
import argparse
import collections
import glob
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading

ROWS = 60_000
FILES = 6
JOB = """apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {{name: places}}
spec:
  sources:
    - name: events
      files: {{url: "file://{root}/in/", pattern: "*.jsonl"}}
      format: {{json: {{}}}}
      columns: [{{name: id, type: BIGINT, nullable: false}}, {{name: text, type: STRING}}]
      limits: {{maxFilesPerEpoch: 1}}
  sql: |
    INSERT INTO out SELECT DISTINCT id, text FROM events
  sqlOptions: {{allowUnboundedState: true}}
  sinks:
    - name: out
      files: {{url: "file://{root}/out/"}}
      format: {{json: {{}}}}
  trigger: {{availableNow: {{drain: false}}}}
  checkpoint: {{interval: 200ms, storage: {storage}}}
  workers: {{slots: 2}}
"""


def mount(path, options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)


def remount(path, options):
    subprocess.run(["mount", "-o", f"remount,{options}", path], check=True)


class Place:
    """A job with its input in a folder of its own."""

    def __init__(self, penstock, name):
        self.penstock, self.name = penstock, name
        self.root = tempfile.mkdtemp(prefix=f"penstock-places-{name}-")
        for folder in ("in", "out", "log", "volume"):
            os.makedirs(os.path.join(self.root, folder))
        for n in range(FILES):
            with open(f"{self.root}/in/{n}.jsonl", "w") as f:
                for i in range(n, ROWS, FILES):
                    f.write(json.dumps({"id": i, "text": f"row {i} {hash_of(i)}"}) + "\n")
        self.storage(f'{{local: {{path: "{self.root}/log"}}}}')

    def storage(self, storage):
        with open(f"{self.root}/job.yaml", "w") as f:
            f.write(JOB.format(root=self.root, storage=storage))

    def run(self, state="volume"):
        state = state if state == "memory" else f"{self.root}/{state}"
        done = subprocess.run(["timeout", "-k", "1", "120", self.penstock, "run", f"{self.root}/job.yaml", "--state", state], capture_output=True,
                              text=True, cwd=self.root, env=dict(os.environ, AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b", AWS_ALLOW_HTTP="true"))
        return done.returncode, done.stderr

    def stops(self, codes, state="volume"):
        """Runs and expects a failure with one of these codes, told in a sentence."""
        status, said = self.run(state)
        assert status not in (0, 124, 137), f"{self.name}: expected a failure, got status {status}:\n{said[-1500:]}"
        assert any(code in said for code in codes), f"{self.name}: none of {codes} in:\n{said[-1500:]}"
        assert "panicked" not in said, f"{self.name}: a panic:\n{said[-1500:]}"
        line = next(l for l in said.splitlines() if any(code in l for code in codes))
        line = line.strip().replace(self.root, "…")
        print(f"{self.name}: stopped with status {status}: {line}", flush=True)

    def goes_on(self, state="volume"):
        """Runs and expects every row once."""
        status, said = self.run(state)
        assert status == 0, f"{self.name}: the mended job ended with {status}:\n{said[-1500:]}"
        seen = collections.Counter()
        for path in glob.glob(f"{self.root}/out/**/*.json*", recursive=True):
            with open(path) as f:
                seen.update(json.loads(line)["id"] for line in f)
        missing, extra = ROWS - len(seen), sum(seen.values()) - len(seen)
        assert missing == 0 and extra == 0, f"{self.name}: {missing} rows missing, {extra} extra"
        print(f"{self.name}: mended, {len(seen)} rows, each once", flush=True)
        subprocess.run(["umount", "-q", f"{self.root}/log", f"{self.root}/volume"], stderr=subprocess.DEVNULL)
        shutil.rmtree(self.root, ignore_errors=True)


def hash_of(i):
    """Text that does not compress to nothing."""
    return f"{(i * 0x9E3779B97F4A7C15) % 2**64:016x}{(i * 0xC2B2AE3D27D4EB4F) % 2**64:016x}"


def full_log(penstock):
    place = Place(penstock, "full-log")
    mount(f"{place.root}/log", "size=1500k")
    place.stops(["PR0402", "PR0409"])
    remount(f"{place.root}/log", "size=200m")
    place.goes_on()


def full_volume(penstock):
    place = Place(penstock, "full-volume")
    mount(f"{place.root}/volume", "size=1m")
    place.stops(["PR0409", "PR0510", "PR0514"])
    remount(f"{place.root}/volume", "size=400m")
    place.goes_on()


def read_only_log(penstock):
    place = Place(penstock, "read-only-log")
    mount(f"{place.root}/log", "size=200m")
    remount(f"{place.root}/log", "ro,size=200m")
    place.stops(["PR0402", "PR0409"])
    remount(f"{place.root}/log", "rw,size=200m")
    place.goes_on()


class Careless(http.server.BaseHTTPRequestHandler):
    """An object store that takes every PUT, whatever its conditions."""
    objects = {}
    protocol_version = "HTTP/1.1"

    def answer(self, status, body=b"", kind="application/octet-stream"):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", kind)
        self.send_header("ETag", '"x"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_PUT(self):
        self.objects[self.path] = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(200)

    def do_GET(self):
        if "list-type=2" in self.path:
            return self.answer(200, b'<?xml version="1.0"?><ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>0</KeyCount></ListBucketResult>', "application/xml")
        body = self.objects.get(self.path)
        self.answer(404) if body is None else self.answer(200, body)

    do_HEAD = do_GET

    def do_DELETE(self):
        self.objects.pop(self.path, None)
        self.answer(204)

    def do_POST(self):
        keys = re.findall(r"<Key>(.*?)</Key>", self.rfile.read(int(self.headers.get("Content-Length", 0))).decode())
        for key in keys:
            self.objects.pop(f"{self.path.split('?')[0]}/{key}", None)
        gone = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
        self.answer(200, f'<?xml version="1.0"?><DeleteResult>{gone}</DeleteResult>'.encode(), "application/xml")

    def log_message(self, *_):
        pass


def careless_store(penstock):
    place = Place(penstock, "careless-store")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Careless)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place.storage(f"{{s3: {{bucket: streams, prefix: p, region: us-east-1, endpoint: 'http://127.0.0.1:{server.server_port}', pathStyle: true}}}}")
    place.stops(["PR0403"])
    server.shutdown()
    place.storage(f'{{local: {{path: "{place.root}/log"}}}}')
    place.goes_on()


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--penstock", required=True)
    ap.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    a = ap.parse_args()
    penstock = os.path.abspath(a.penstock)
    if not a.inside:
        return subprocess.run(["unshare", "--mount", "--propagation", "private", sys.executable, os.path.abspath(__file__), "--inside", "--penstock", penstock]).returncode
    failed = []
    cases = (full_log, full_volume, read_only_log, careless_store)
    for case in cases:
        try:
            case(penstock)
        except AssertionError as error:
            print(error, flush=True)
            failed.append(case.__name__)
    if failed:
        print(f"FAIL e2e places: {', '.join(failed)}")
        return 1
    print(f"PASS e2e places: {len(cases)} places that cannot hold a job, each told and mended")
    return 0


if __name__ == "__main__":
    sys.exit(main())
