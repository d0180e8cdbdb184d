"""Executors: run the jobs of patches in other processes (packager.diff.run_jobs).

Reading order:
    processes       processes of this machine
    dask, dask_gateway      a Dask cluster, and the process that talks to it
    sealed_inputs           inputs for workers that share no folder
    results                 results as bytes, without pickle
    open_executor   from the text of `--executor` to an executor
    errors          every error of an executor
"""
