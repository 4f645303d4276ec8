#!/usr/bin/env python3
"""Checks the fenced blocks of the docs: what a reader may copy must work.

Every block marked `sh` is executed (bash -e, in a scratch copy of the examples, with penstock on PATH; the blocks of a page
run in order in one folder). Every block marked `yaml` that is a StreamingJob or Savepoint is linted; one marked `yaml test-in=FOLDER` is a
test file, which stands in that folder of the scratch copy and must pass; other YAML (a part of a manifest) is parsed. What is
marked `sh on-cluster` needs one, and is run by `e2e/newcomer.py` there. A block marked `sh no-run` or `yaml no-lint` is named and
counted as left out, with its reason after a colon: ```sh no-run: needs a cluster.
The last line counts, and says PASS or FAIL.
"""
import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile

import yaml

FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```", re.M | re.S)
root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def pages(paths):
    for path in paths:
        if os.path.isfile(path):
            yield path
        for folder, _, names in sorted(os.walk(path)):
            yield from (os.path.join(folder, n) for n in sorted(names) if n.endswith(".md"))


def blocks(page):
    text = open(page, encoding="utf-8").read()
    for m in FENCE.finditer(text):
        info, _, reason = m["info"].strip().partition(":")
        words = info.split()
        body = re.sub(f"^{m['indent']}", "", m["body"], flags=re.M)
        yield text.count("\n", 0, m.start()) + 1, words[:1], set(words[1:]), reason.strip(), body


def run(command, folder, env, stdin=None):
    try:
        done = subprocess.run(command, cwd=folder, env=env, input=stdin, capture_output=True, text=True, timeout=300)
        return done.returncode, (done.stdout + done.stderr)[-1500:]
    except subprocess.TimeoutExpired:
        return "the limit of 300 s", ""


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--bin", required=True)
    ap.add_argument("paths", nargs="+")
    a = ap.parse_args()
    env = dict(os.environ, PATH=a.bin + os.pathsep + os.environ["PATH"])
    ran = linted = tested = parsed = left_out = failed = 0
    for page in pages(a.paths):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(os.path.join(root, "examples"), os.path.join(folder, "examples"))
            for line, kind, marks, reason, body in blocks(page):
                status, said = 0, ""
                if kind == ["sh"]:
                    if "on-cluster" in marks:
                        left_out += 1
                        print(f"{page}:{line}: not run here: ./dev e2e newcomer runs it")
                        continue
                    if "no-run" in marks:
                        left_out += 1
                        print(f"{page}:{line}: not run: {reason or 'no reason given'}")
                        continue
                    ran += 1
                    status, said = run(["bash", "-e", "-o", "pipefail", "-c", body], folder, env)
                elif kind == ["yaml"]:
                    if "no-lint" in marks:
                        left_out += 1
                        print(f"{page}:{line}: not linted: {reason or 'no reason given'}")
                        continue
                    test_in = [m.removeprefix("test-in=") for m in marks if m.startswith("test-in=")]
                    if test_in:
                        tested += 1
                        file = os.path.join(test_in[0], f"docs-line-{line}.yaml")
                        open(os.path.join(folder, file), "w").write(body)
                        status, said = run(["penstock", "test", file], folder, env)
                    elif re.search(r"^kind: (StreamingJob|Savepoint)\b", body, re.M):
                        linted += 1
                        file = os.path.join(folder, "block.yaml")
                        open(file, "w").write(body)
                        status, said = run(["penstock", "lint", file], folder, env)
                    else:
                        parsed += 1
                        try:
                            list(yaml.safe_load_all(body))
                        except yaml.YAMLError as error:
                            status, said = 1, str(error)
                if status != 0:
                    failed += 1
                    print(f"{page}:{line}: {kind[0]} block ended with {status}\n{said}")
    good = failed == 0 and ran > 0 and linted > 0
    print(f"{'PASS' if good else 'FAIL'} docs: {ran} sh blocks run, {linted} manifests linted, {tested} test files run, "
          f"{parsed} parts of manifests parsed, {left_out} left out by name, {failed} failed")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
