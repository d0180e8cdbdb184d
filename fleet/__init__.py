"""The collector of device reports and vitals: it stores signed lines, counts devices, and shows them.

Words: line (one signed report or vital, as the device sent it), log (the numbering of one journal of a device),
standing (what is known about a device and family now), tally (how many devices have a standing), suspect (a device
whose lines contradict each other: a copied or restored disk), census (the devices that the stopping rule counts).

Rules:
- The collector has no signing key. It can delay or hide lines; it cannot make one. A reader that decides on its
  lines verifies them again (fleet.census).
- A line is judged alone; a batch is one transaction. Each line counts once, however often and in whatever order it
  comes.

Reading order:
    line.py              bytes to a report or vital, and its signature
    judge.py             the place of a line in its log: new, known, late, or a fork. No I/O
    standing.py          the standing of a device after a line, and the tally. No I/O
    tables.py            the tables; database.py opens SQLite or PostgreSQL
    device_index.py      the registry's devices as an indexed table, filled once for each registry
    ingest.py            judges a batch; batch_rows.py reads and writes the rows that it needs
    queries.py           what the commands and the page read
    census.py            who is exposed to a rollout, in which stratum, and what is known about them
    retention.py         deletes old lines, keeps daily sums
    rate_limit.py        a token bucket for each sender and device
    mqtt.py              lines from an MQTT broker
    web/                 the HTTP server: lines come in; the page and the metrics go out
"""
