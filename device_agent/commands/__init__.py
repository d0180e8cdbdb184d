"""The command line `device-agent`. No other package prints.

Reading order:
    root.py               the commands, and `main`; new_device.py: init and enroll
    check_config.py       check the configuration; check_connection.py: the way to the repository
    files.py              read the files of the active release, or run a program on them
    adapter.py, quarantine.py, report.py   groups of commands
    daemon_or_offline.py  ask the running daemon, or else work offline
    offline.py            update, plan, rollback and so on without a daemon
    bench.py              measure the stored bundles
    report_export.py      sign and write reports
"""
