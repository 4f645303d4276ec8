#!/usr/bin/env python3
"""Turns the flights data set into the input of the flights suites, and says what the right answer is.

Reads three million real flights of 2001 (vega-datasets, `flights-3m.parquet`) and writes into a folder:

  part-0.jsonl … part-3.jsonl   one file per input partition: a JSON object a line, shuffled within 30 minutes of event
                                time, with 50 poison rows among them
  late.jsonl                    200 flights older than everything else by two days; line i belongs to partition i % 4
  markers-1.jsonl, markers-2.jsonl   end markers, far behind the last flight: the first closes every window of the flights, the
                                second those of the first; lines go round robin to the partitions
  poison.txt                    partition and line number of each poison row, with its kind
  expected-hourly.txt, expected-six-hours.txt   the oracle's rows (DuckDB over the parquet file, not over the JSON) in
                                canonical text, sorted
  facts.json                    counts, bounds of event time, the oracle's checksums; written last

Everything is a function of the data set, --rows and --seed. A folder that is complete for them is left alone.

Canonical text of a row: the values of its columns in the order of the columns' names, joined by `|`; null is `\\N`, a
timestamp is `2001-01-01 00:00:00` without trailing zeros of a fraction. `penstock-e2e dump` writes the same form.
"""
import argparse
import json
import os
import shutil
import sys

import duckdb

FORMAT = 3                      # raise it when the files change: folders of an older form are made again
PARTITIONS = 4
POISON = 50
LATE = 200
MARKERS = 256                   # enough for every shard and every output partition to get some
DISORDER_MS = 30 * 60 * 1000

HOURLY = """
    SELECT origin, window_start, window_start + INTERVAL 1 HOUR AS window_end,
           count(*) AS flights, sum(delay) AS total_delay, max(delay) AS max_delay
    FROM (SELECT *, date_trunc('hour', event_time) AS window_start FROM flights)
    GROUP BY origin, window_start"""

# A flight belongs to the six windows that start in the six hours up to and including its own.
SIX_HOURS = """
    SELECT origin, window_start, window_start + INTERVAL 6 HOUR AS window_end,
           count(*) AS flights, sum(delay) AS total_delay, max(delay) AS max_delay
    FROM (SELECT f.*, date_trunc('hour', event_time) - INTERVAL 1 HOUR * back AS window_start
          FROM flights f, range(6) AS hops(back))
    GROUP BY origin, window_start"""


def canonical(query):
    """The rows of a window query as canonical text: columns in the order of their names."""
    stamp = "strftime({}, '%Y-%m-%d %H:%M:%S')"
    columns = ["flights", "max_delay", "origin", "total_delay", stamp.format("window_end"), stamp.format("window_start")]
    text = " || '|' || ".join(f"coalesce(CAST({c} AS VARCHAR), '\\N')" for c in columns)
    return f"SELECT {text} AS line FROM ({query}) ORDER BY line"


def fnv(text):
    h = 0xCBF29CE484222325
    for b in text.encode():
        h = ((h ^ b) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def poison(n):
    """The nth poison row and its kind. Each is wrong in a way that no reader of JSON may forgive."""
    good = '{"flight_id":%d,"event_time":"2001-01-01 00:00:00","origin":"LAS","destination":"PHL","delay":1,"distance":2}' % (-n - 1)
    kinds = [
        ("truncated", good[: 20 + n].encode()),
        ("not-json", b"flight %d was late" % n),
        ("wrong-type", good.replace('"delay":1', '"delay":"very %d"' % n).encode()),
        ("wrong-shape", b"[" + good.encode() + b"]"),
        ("timestamp-out-of-range", good.replace("2001-01-01 00:00:00", "2001-13-45 99:%02d:00" % (n % 60)).encode()),
        ("timestamp-of-no-calendar", good.replace('"2001-01-01 00:00:00"', '"999999999-01-01 00:00:00"').encode()),
        ("null-in-not-null", good.replace('"flight_id":%d' % (-n - 1), '"flight_id":null').encode()),
        ("number-out-of-range", good.replace('"distance":2', '"distance":99999999999999999999999').encode()),
        ("bad-utf8", good.replace("LAS", "L\x00S").encode().replace(b"\x00", b"\xff\xfe")),
        ("missing-not-null", good.replace('"event_time":"2001-01-01 00:00:00",', "").encode()),
    ]
    return kinds[n % len(kinds)]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--parquet", required=True)
    ap.add_argument("--out", required=True)
    ap.add_argument("--rows", type=int, default=3_000_000, help="the first so many flights in order of time")
    ap.add_argument("--seed", type=int, default=1)
    a = ap.parse_args()

    facts_file = os.path.join(a.out, "facts.json")
    if os.path.exists(facts_file):
        facts = json.load(open(facts_file))
        if (facts["format"], facts["asked"], facts["seed"]) == (FORMAT, a.rows, a.seed):
            print(f"flights: {a.out} is complete ({facts['flights']} flights)")
            return
    shutil.rmtree(a.out, ignore_errors=True)
    os.makedirs(a.out)

    db = duckdb.connect()
    # file_row_number is the identity of a flight: the file is in order of time and never changes.
    db.execute(f"""CREATE TABLE flights AS
        SELECT file_row_number AS flight_id, date AS event_time, origin, destination, delay, distance
        FROM read_parquet('{a.parquet}', file_row_number = true) WHERE file_row_number < {a.rows}""")
    count, first, last = db.execute("SELECT count(*), min(event_time), max(event_time) FROM flights").fetchone()
    # Two rounds of a multiplicative generator: the same numbers with every version of every library.
    db.execute(f"""CREATE TABLE placed AS SELECT *, row_number() OVER (ORDER BY epoch_ms(event_time) + r % {DISORDER_MS}, flight_id) - 1 AS place
        FROM (SELECT *, ((flight_id + {a.seed} * 7919) * 2654435761 % 4294967291) * 48271 % 2147483647 AS r FROM flights)""")

    outs = [open(os.path.join(a.out, f"part-{p}.jsonl"), "wb") for p in range(PARTITIONS)]
    lines = [0] * PARTITIONS
    notes = open(os.path.join(a.out, "poison.txt"), "w")
    step = max(count // (POISON + 1), 1)
    poisoned = 0

    def put(partition, line):
        outs[partition].write(line + b"\n")
        lines[partition] += 1

    rows = db.execute("""SELECT '{"flight_id":' || flight_id || ',"event_time":"' || strftime(event_time, '%Y-%m-%d %H:%M:%S') ||
        '","origin":"' || origin || '","destination":"' || destination || '","delay":' || coalesce(delay::VARCHAR, 'null') ||
        ',"distance":' || coalesce(distance::VARCHAR, 'null') || '}', (flight_id * 31 + flight_id // 7) % 4 FROM placed ORDER BY place""")
    seen = 0
    while batch := rows.fetchmany(100_000):
        for text, partition in batch:
            put(partition, text.encode())
            seen += 1
            if seen % step == 0 and poisoned < POISON:
                kind, body = poison(poisoned)
                partition = poisoned % PARTITIONS
                notes.write(f"{partition} {lines[partition]} {kind}\n")
                put(partition, body)
                poisoned += 1
    for f in outs + [notes]:
        f.close()

    def flight(ident, time, origin):
        return json.dumps({"flight_id": ident, "event_time": time, "origin": origin, "destination": "END", "delay": 0, "distance": 0},
                          separators=(",", ":")) + "\n"

    def moment(days, seconds=0):
        return db.execute("SELECT strftime(?::TIMESTAMP + INTERVAL 1 DAY * ? + INTERVAL 1 SECOND * ?, '%Y-%m-%d %H:%M:%S')",
                          [last if days > 0 else first, days, seconds]).fetchone()[0]

    origins = [o for (o,) in db.execute("SELECT DISTINCT origin FROM flights ORDER BY origin LIMIT 20").fetchall()]
    with open(os.path.join(a.out, "late.jsonl"), "w") as f:
        for i in range(LATE):
            f.write(flight(10_000_000 + i, moment(-2, -i), origins[i % len(origins)]))
    with open(os.path.join(a.out, "markers-1.jsonl"), "w") as f:
        for i in range(MARKERS):
            f.write(flight(20_000_000 + i, moment(2), f"END-{i:03}"))
    with open(os.path.join(a.out, "markers-2.jsonl"), "w") as f:
        for i in range(PARTITIONS * 4):
            f.write(flight(30_000_000 + i, moment(4), "LAST"))

    answers = {}
    for name, query in (("hourly", HOURLY), ("six-hours", SIX_HOURS)):
        expected = [line for (line,) in db.execute(canonical(query)).fetchall()]
        with open(os.path.join(a.out, f"expected-{name}.txt"), "w") as f:
            f.writelines(line + "\n" for line in expected)
        answers[name] = {"rows": len(expected), "sum": f"{sum(map(fnv, expected)) & 0xFFFFFFFFFFFFFFFF:016x}"}

    facts = {"format": FORMAT, "asked": a.rows, "seed": a.seed, "flights": count, "lines": lines, "poison": poisoned, "late": LATE,
             "markers": MARKERS, "first": str(first), "last": str(last), "answers": answers}
    with open(facts_file + ".new", "w") as f:
        json.dump(facts, f, indent=1)
    os.rename(facts_file + ".new", facts_file)
    print(f"flights: wrote {count} flights, {poisoned} poison rows, {LATE} late rows to {a.out}; "
          f"{answers['hourly']['rows']} hourly and {answers['six-hours']['rows']} six-hour rows expected")


if __name__ == "__main__":
    sys.exit(main())
