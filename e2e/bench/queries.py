"""The Nexmark queries, once for both engines: one text of SQL per query, and what each engine wants around it.

Flink gets CREATE TABLE statements, Penstock a StreamingJob; views and queries are the same text. q7t is q7 in its form of
a Top-1 per window, in both; Nexmark's own q7 does not end in reasonable time on Flink.
"""

PERSON = [("id", "BIGINT"), ("name", "STRING"), ("emailAddress", "STRING"), ("creditCard", "STRING"), ("city", "STRING"),
          ("state", "STRING"), ("dateTime", "TIMESTAMP(3)"), ("extra", "STRING")]
AUCTION = [("id", "BIGINT"), ("itemName", "STRING"), ("description", "STRING"), ("initialBid", "BIGINT"), ("reserve", "BIGINT"),
           ("dateTime", "TIMESTAMP(3)"), ("expires", "TIMESTAMP(3)"), ("seller", "BIGINT"), ("category", "BIGINT"), ("extra", "STRING")]
BID = [("auction", "BIGINT"), ("bidder", "BIGINT"), ("price", "BIGINT"), ("channel", "STRING"), ("url", "STRING"),
       ("dateTime", "TIMESTAMP(3)"), ("extra", "STRING")]
TIME = ("CASE WHEN event_type = 0 THEN person.`dateTime` WHEN event_type = 1 THEN auction.`dateTime` "
        "ELSE bid.`dateTime` END")
OUT_OF_ORDER_SECONDS = 4


def row(fields):
    return "ROW<" + ", ".join(f"`{n}` {t}" for n, t in fields) + ">"


def view(name, fields, kind):
    columns = ", ".join("`dateTime`" if n == "dateTime" else f"{name}.`{n}`" for n, _ in fields)
    return f"CREATE VIEW {name} AS SELECT {columns} FROM events WHERE event_type = {kind};"


VIEWS = {"person": view("person", PERSON, 0), "auction": view("auction", AUCTION, 1), "bid": view("bid", BID, 2)}

HOP = "TABLE(HOP(TABLE bid, DESCRIPTOR(`dateTime`), INTERVAL '2' SECOND, INTERVAL '10' SECOND))"


def tumble(table):
    return f"TABLE(TUMBLE(TABLE {table}, DESCRIPTOR(`dateTime`), INTERVAL '10' SECOND))"


def keyed(hot):
    """Counts by auction; rows for which `hot` holds are all of one auction."""
    return (["bid"], [("auction", "BIGINT"), ("num", "BIGINT"), ("total", "BIGINT"), ("endtime", "TIMESTAMP(3)")],
            f"""SELECT auction, COUNT(*) AS num, SUM(price) AS total, window_end AS endtime FROM
  TABLE(TUMBLE(TABLE skewed, DESCRIPTOR(`dateTime`), INTERVAL '10' SECOND))
  GROUP BY auction, window_start, window_end""", f"""CREATE VIEW skewed AS
  SELECT CASE WHEN {hot} THEN 0 ELSE auction END AS auction, price, `dateTime` FROM bid;""")


# name -> (views, columns of the output, query, a view on those views if it needs one). All outputs are append-only.
QUERIES = {
    "q0": (["bid"], [("auction", "BIGINT"), ("bidder", "BIGINT"), ("price", "BIGINT"), ("dateTime", "TIMESTAMP(3)"), ("extra", "STRING")],
           "SELECT auction, bidder, price, `dateTime`, extra FROM bid"),
    "q1": (["bid"], [("auction", "BIGINT"), ("bidder", "BIGINT"), ("price", "DECIMAL(23,3)"), ("dateTime", "TIMESTAMP(3)"), ("extra", "STRING")],
           "SELECT auction, bidder, 0.908 * price AS price, `dateTime`, extra FROM bid"),
    "q2": (["bid"], [("auction", "BIGINT"), ("price", "BIGINT")],
           "SELECT auction, price FROM bid WHERE MOD(auction, 123) = 0"),
    "q5": (["bid"], [("auction", "BIGINT"), ("num", "BIGINT"), ("starttime", "TIMESTAMP(3)"), ("endtime", "TIMESTAMP(3)")],
           f"""SELECT AB.auction, AB.num, AB.starttime, AB.endtime FROM
  (SELECT auction, COUNT(*) AS num, window_start AS starttime, window_end AS endtime
   FROM {HOP} GROUP BY auction, window_start, window_end) AS AB
  JOIN (SELECT MAX(CB.num) AS maxn, CB.starttime, CB.endtime FROM
    (SELECT COUNT(*) AS num, window_start AS starttime, window_end AS endtime
     FROM {HOP} GROUP BY auction, window_start, window_end) AS CB
    GROUP BY CB.starttime, CB.endtime) AS MB
  ON AB.starttime = MB.starttime AND AB.endtime = MB.endtime AND AB.num >= MB.maxn"""),
    "q7t": (["bid"], [("auction", "BIGINT"), ("bidder", "BIGINT"), ("price", "BIGINT"), ("dateTime", "TIMESTAMP(3)"), ("extra", "STRING"),
                      ("endtime", "TIMESTAMP(3)")],
            f"""SELECT auction, bidder, price, `dateTime`, extra, window_end AS endtime FROM
  (SELECT *, ROW_NUMBER() OVER (PARTITION BY window_start, window_end ORDER BY price DESC) AS rn FROM {tumble('bid')})
  WHERE rn <= 1"""),
    "q8": (["person", "auction"], [("id", "BIGINT"), ("name", "STRING"), ("starttime", "TIMESTAMP(3)")],
           f"""SELECT P.id, P.name, P.starttime FROM
  (SELECT id, name, window_start AS starttime, window_end AS endtime
   FROM {tumble('person')} GROUP BY id, name, window_start, window_end) P
  JOIN (SELECT seller, window_start AS starttime, window_end AS endtime
   FROM {tumble('auction')} GROUP BY seller, window_start, window_end) A
  ON P.id = A.seller AND P.starttime = A.starttime AND P.endtime = A.endtime"""),
    "even": keyed("bidder < 0"),
    "hot": keyed("MOD(bidder, 2) = 0"),
}


def indent(text, by):
    return "\n".join(" " * by + line for line in text.split("\n"))


def flink(name, brokers, topic, out, run):
    """The script for FlinkQ: statements that end with a semicolon at a line's end."""
    views, columns, query, *more = QUERIES[name]
    declared = ", ".join(f"`{n}` {t}" for n, t in columns)
    return f"""CREATE TABLE events (
  event_type INT, person {row(PERSON)}, auction {row(AUCTION)}, bid {row(BID)},
  `dateTime` AS {TIME},
  WATERMARK FOR `dateTime` AS `dateTime` - INTERVAL '{OUT_OF_ORDER_SECONDS}' SECOND
) WITH ('connector'='kafka', 'topic'='{topic}', 'properties.bootstrap.servers'='{brokers}', 'properties.group.id'='{run}',
  'scan.startup.mode'='earliest-offset', 'scan.bounded.mode'='latest-offset', 'format'='json');
{chr(10).join([*(VIEWS[v] for v in views), *more])}
CREATE TABLE snk ({declared}) WITH ('connector'='kafka', 'format'='json', 'properties.bootstrap.servers'='{brokers}', 'topic'='{out}',
  'properties.transaction.timeout.ms'='900000', 'sink.delivery-guarantee'='exactly-once', 'sink.transactional-id-prefix'='{run}');
INSERT INTO snk {query};
"""


def penstock(name, brokers, topic, out, run, checkpoint, trigger="{availableNow: {drain: true}}", slots=2):
    """The StreamingJob of the same query."""
    views, _, query, *more = QUERIES[name]
    sql = "\n".join([*(VIEWS[v] for v in views), *more]) + f"\nINSERT INTO snk\n{query};"
    return f"""apiVersion: penstock.dev/v1alpha1
kind: StreamingJob
metadata: {{name: {run}}}
spec:
  sources:
    - name: events
      kafka: {{bootstrapServers: "{brokers}", topics: [{topic}], startFrom: {{earliest: {{}}}}}}
      format: {{json: {{timestamps: ISO8601}}}}
      columns:
        - {{name: event_type, type: INT}}
        - {{name: person, type: "{row(PERSON)}"}}
        - {{name: auction, type: "{row(AUCTION)}"}}
        - {{name: bid, type: "{row(BID)}"}}
        - {{name: dateTime, type: TIMESTAMP(3), as: "{TIME}"}}
      watermark: {{column: dateTime, maxOutOfOrderness: {OUT_OF_ORDER_SECONDS}s}}
  sql: |
{indent(sql, 4)}
  sinks:
    - name: snk
      kafka: {{bootstrapServers: "{brokers}", topic: {out}}}
      format: {{json: {{}}}}
      delivery: ExactlyOnce
  trigger: {trigger}
  checkpoint: {{interval: 1s, storage: {{local: {{path: "{checkpoint}"}}}}}}
  workers: {{slots: {slots}}}
"""
