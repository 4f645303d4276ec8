#!/usr/bin/env python3
"""What a newcomer does, word for word: runs the block of the README that is marked `sh on-cluster`, line by line, and times it.

The last line's output must be rows, one JSON object each. What an earlier run left on a cluster that is still there is removed
first, the rows above all; whether one stood is said. The last line of the output says PASS or FAIL, and after how long the rows
were there.
"""
import json
import os
import re
import subprocess
import sys
import time

root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def lines():
    text = open(os.path.join(root, "README.md"), encoding="utf-8").read()
    found = re.findall(r"^```sh on-cluster[^\n]*\n(.*?)^```", text, re.M | re.S)
    if len(found) != 1:
        sys.exit(f"the README has {len(found)} blocks marked `sh on-cluster`, it must have one")
    return [line for line in found[0].splitlines() if line.strip()]


# Exits with 0 when nothing of an earlier run is left.
FORGET = """eval "$(./dev kind env)"
if ! kind get clusters 2>/dev/null | grep -qx penstock; then
  echo "no cluster stood before: its making is part of the time"
  e2e/kafka/kafka.sh wipe 29792
  exit
fi
echo "the cluster stood before: its making is no part of the time; what an earlier run left on it is removed"
if kubectl get namespace shop >/dev/null 2>&1; then
  kubectl --namespace shop patch streamingjob visits --type=merge -p '{"spec": {"deletionPolicy": "Delete"}}' &&
    kubectl --namespace shop delete streamingjob visits --timeout=200s
  kubectl delete namespace shop --timeout=240s || exit
fi
./dev kind topic --delete visits-counted || exit
for _ in 1 2 3 4 5 6 7 8 9 10; do
  topics=$(./dev kind topic --list) || exit
  grep -qx visits-counted <<<"$topics" || exit 0
  sleep 1
done
echo "the topic of an earlier run is still there"
exit 1
"""


def main():
    subprocess.run(["bash", "-c", FORGET], cwd=root, check=True)
    began, times, script = time.monotonic(), [], lines()
    # One shell for all lines, as a person has; each line says when it was done.
    told = "".join(f"{line}\nprintf '\\n@ %s\\n' {i}\n" for i, line in enumerate(script))
    shell = subprocess.Popen(["bash", "-e"], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    shell.stdin.write(told)
    shell.stdin.close()
    said, parts = [], []
    for line in shell.stdout:
        if re.fullmatch(r"@ \d+\n", line):
            times.append(time.monotonic() - began)
            parts.append("".join(said).strip())
            print(f"{times[-1]:6.1f} s  {script[len(times) - 1]}")
            said = []
        else:
            said.append(line)
    if shell.wait() != 0:
        print("".join(said))
        sys.exit(f"FAIL newcomer: `{script[len(times)]}` ended with {shell.returncode}")
    rows = [json.loads(row) for row in parts[-1].splitlines()]
    for row in rows:
        print("         ", json.dumps(row))
    if not rows or not all(row["visits"] > 0 for row in rows):
        sys.exit("FAIL newcomer: there are no rows")
    print(f"PASS newcomer: {len(rows)} rows on the output topic {times[-1]:.0f} s after the first command, {times[-1] - times[0]:.0f} s after the cluster was there")


main()
