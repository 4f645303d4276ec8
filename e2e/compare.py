#!/usr/bin/env python3
"""Compares an output topic, or a dump of one, with the oracle's rows as multisets, and prints missing and extra apart.

  compare.py --expected expected-hourly.txt --actual dumped.txt
  compare.py --expected expected-hourly.txt --topic flights-hourly --brokers 127.0.0.1:29092 --e2e target/release/penstock-e2e

Both sides are lines of canonical text (see data/flights.py). `--drop TEXT` leaves rows of the actual side out that have a
column starting so: the end markers. The last line says PASS or FAIL, and so does the exit status: an empty answer fails.
"""
import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter


def lines(path, drop):
    with open(path, encoding="utf-8") as f:
        rows = (line.rstrip("\n") for line in f)
        return Counter(r for r in rows if not any(c.startswith(d) for c in r.split("|") for d in drop))


def show(word, rows, limit):
    total = sum(rows.values())
    print(f"  {word}: {total}")
    for row, n in sorted(rows.items())[:limit]:
        print(f"    {word} {n}x {row}")
    if len(rows) > limit:
        print(f"    … and {len(rows) - limit} more distinct rows")
    return total


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--expected", required=True)
    ap.add_argument("--actual", help="a file of canonical rows")
    ap.add_argument("--topic", help="read the committed records of this topic instead")
    ap.add_argument("--brokers", default="127.0.0.1:29092")
    ap.add_argument("--e2e", default="penstock-e2e", help="the program that dumps a topic")
    ap.add_argument("--drop", action="append", default=[])
    ap.add_argument("--name", default="")
    ap.add_argument("--limit", type=int, default=10)
    a = ap.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        actual_file = a.actual
        if a.topic:
            actual_file = os.path.join(folder, "rows")
            subprocess.run([a.e2e, "dump", "--brokers", a.brokers, "--topic", a.topic, "--rows", actual_file], check=True, stdout=subprocess.DEVNULL)
        if not actual_file:
            ap.error("one of --actual and --topic is needed")
        expected, actual = lines(a.expected, []), lines(actual_file, a.drop)

    name = a.name or a.topic or os.path.basename(a.actual)
    print(f"{name}: {sum(expected.values())} rows expected, {sum(actual.values())} rows found")
    missing, extra = show("missing", expected - actual, a.limit), show("extra", actual - expected, a.limit)
    good = missing == 0 and extra == 0 and sum(actual.values()) > 0
    print(f"{'PASS' if good else 'FAIL'} {name}: {missing} missing, {extra} extra, {sum(actual.values())} rows")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
