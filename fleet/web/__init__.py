"""The HTTP server of the collector: lines come in, the page and the metrics go out.

app.py            the routes, the headers of every response, and the server's loop
lines.py          POST /v1/lines
login.py          who may see groups below MIN_GROUP, and single devices
page.py           the pages; templates/ has their HTML, plots.py their drawings
metrics.py        /metrics, for Prometheus
privacy.py        hides groups below MIN_GROUP
"""
