"""Executors: run the jobs of patches in other processes (packager.diff.run_jobs).

Reading order:
    processes       processes of this machine
    open_executor   from the text of `--executor` to an executor
    errors          every error of an executor
"""
