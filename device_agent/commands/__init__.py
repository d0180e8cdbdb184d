"""The command line `device-agent`. No other package prints.

Reading order:
    root.py               the commands, and `main`
    adapter.py, quarantine.py, report.py   groups of commands
    daemon_or_offline.py  ask the running daemon, or else work offline
    offline.py            update, plan, rollback and so on without a daemon
    bench.py              measure the stored bundles
    report_export.py      sign and write reports
"""
