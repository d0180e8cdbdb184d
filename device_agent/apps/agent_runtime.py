"""A model inside an application that follows the agent: `AgentRuntime`.

    with AgentRuntime("kws") as runtime:
        outputs = runtime.run({"x": x})

Rules:
1. The model of the serving release is borrowed, checked on its golden inputs and loaded (device_agent.runtime). When
   the agent swaps, the new model is loaded beside the running one, which serves until then. When the agent rolls back,
   the previous model, which is still loaded, serves again.
2. A model that does not load changes nothing: the one before it keeps running. One that `judge` rejects, or on which
   `judge` raises an exception, ran until then and is replaced by the one before it. If a process is a judge of the
   family, the agent gets the verdict, and ends the probation of such a release.
3. If the daemon ends, or serves nothing, the model keeps running. The connection is opened again until `close`.
4. One thread follows the agent. `run` never waits for it.
"""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final

from bundle.errors import AirweightsError
from device_agent.apps.client import DEFAULT_SOCKET, AppClient, BorrowedBundle, ServingRelease
from device_agent.errors import DaemonNotRunning, NotAllowed, NothingServed, ReleaseReplaced
from device_agent.process.unix_socket import APPS_SOCKET_VARIABLE
from device_agent.runtime.model_runtime import DEFAULT_TOLERANCE_PPM, ModelRuntime

logger = logging.getLogger(__name__)

MAX_REASON_CHARACTERS: Final = 200
FIRST_RETRY_S: Final = 0.1
MAX_RETRY_S: Final = 5.0


class AgentRuntime(ModelRuntime):
    """A ModelRuntime whose model is that of the agent's serving release.

    Use it as a context manager, or call `close`.

    Creating it loads the serving model. If nothing serves yet, `run` raises NoModelLoaded until something does.

    Args:
        family: name of the family.
        socket_path: path of the agent's socket for applications; None: as `open_bundle`.
        model: the model of the bundle: its name, path or file name; None for the only one.
        judge: called with this runtime after each new model is loaded; returns "" if the application finds it healthy,
            else the reason. An exception is a reason, too. With it, verdicts are sent to the agent.
        on_change: called after each event of the agent with the release that it serves, and with the error if its model
            could not be used. An exception that it raises is logged.
        isolation: as in ModelRuntime.
        threads: as in ModelRuntime.
        tolerance_ppm: as in ModelRuntime.

    Raises:
        DaemonNotRunning: no daemon listens there.
        NotAllowed: this process may not read the family.
        FileUnknown: the bundle has no such model, or several models.
        Unfit, Refused: the model does not load, or its golden outputs are wrong.
    """

    def __init__(
        self,
        family: str,
        socket_path: str | Path | None = None,
        *,
        model: str | None = None,
        judge: "Callable[[AgentRuntime], str] | None" = None,
        on_change: Callable[[ServingRelease, AirweightsError | None], None] | None = None,
        isolation: str = "inproc",
        threads: int = 0,
        tolerance_ppm: int = DEFAULT_TOLERANCE_PPM,
    ) -> None:
        super().__init__(isolation=isolation, threads=threads, tolerance_ppm=tolerance_ppm)
        self._family, self._model_name = family, model
        self._path = socket_path or os.environ.get(APPS_SOCKET_VARIABLE, DEFAULT_SOCKET)
        self._judge, self._on_change = judge, on_change
        self._releases: list[ServingRelease] = []  # of the loaded models: the previous one and the current one
        self._closing = threading.Event()
        self._client_lock = threading.Lock()
        self._client: AppClient | None = AppClient(self._path)
        try:
            self._events = self._client.watch(family)
            serving = next(self._events)
            if serving is not None:
                self._follow(serving)
        except BaseException:
            self._client.close()
            super().close()
            raise
        self._thread = threading.Thread(target=self._watch, name=f"follow-{family}", daemon=True)
        self._thread.start()

    @property
    def release(self) -> ServingRelease | None:
        """The release whose model runs; None before the first one."""
        releases = self._releases
        return releases[-1] if releases else None

    def close(self) -> None:
        """Stop following the agent, and free all models; a second call does nothing."""
        self._closing.set()
        with self._client_lock:
            if self._client is not None:
                self._client.close()
        if self._thread is not threading.current_thread():
            self._thread.join()
        super().close()

    def __enter__(self) -> "AgentRuntime":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def _watch(self) -> None:
        delay_s = FIRST_RETRY_S
        while not self._closing.is_set():
            try:
                for serving in self._events:
                    delay_s = FIRST_RETRY_S
                    if serving is not None and not self._closing.is_set():
                        self._follow_safely(serving)
            except AirweightsError as error:
                if not self._closing.is_set():
                    logger.warning("not following %s: %s", self._family, error.message)
            if self._closing.wait(delay_s):
                return
            delay_s = min(2 * delay_s, MAX_RETRY_S)
            self._connect()

    def _connect(self) -> None:
        with self._client_lock:
            if self._closing.is_set():
                return
            if self._client is not None:
                self._client.close()
            self._client = None
            try:
                self._client = AppClient(self._path)
                self._events = self._client.watch(self._family)
            except DaemonNotRunning:
                pass  # tried again
            except AirweightsError as error:
                logger.warning("not following %s: %s", self._family, error.message)

    def _follow_safely(self, serving: ServingRelease) -> None:
        problem: AirweightsError | None = None
        try:
            self._follow(serving)
        except AirweightsError as error:
            logger.warning("release %s of %s is not used: %s", serving.release, self._family, error.message)
            problem = error
        if self._on_change is not None:
            try:
                self._on_change(serving, problem)
            except Exception:  # the application's own code must not end the thread that follows the agent
                logger.exception("on_change failed on release %s of %s", serving.release, self._family)

    def _follow(self, serving: ServingRelease) -> None:
        """Run the model of a release, unless it runs already."""
        if self._releases and self._releases[-1].bundle == serving.bundle:
            self._releases[-1] = serving
            return
        if len(self._releases) == 2 and self._releases[0].bundle == serving.bundle:
            self.rollback()
            self._releases = [serving]
            return
        try:
            with AppClient(self._path) as client, client.open(self._family) as bundle:
                if bundle.release.bundle == serving.bundle:
                    self._use(client, bundle)
                # else the agent has swapped again, and its next event is waiting
        except NothingServed:
            return  # stopped meanwhile

    def _use(self, client: AppClient, bundle: BorrowedBundle) -> None:
        try:
            self.swap(bundle.model_files(self._model_name))
        except AirweightsError as error:
            self._send_verdict(client, bundle, error.message)
            raise
        previous, self._releases = self._releases[-1:], [*self._releases[-1:], bundle.release]
        if self._judge is None:
            return
        try:
            reason = self._judge(self)
        except Exception as error:  # the application's own code: it could not use the model
            logger.exception("the judge failed on release %s of %s", bundle.release.release, self._family)
            reason = f"the judge failed: {type(error).__name__}: {error}"
        if reason and previous:
            self.rollback()
            self._releases = previous
        self._send_verdict(client, bundle, reason)

    def _send_verdict(self, client: AppClient, bundle: BorrowedBundle, reason: str) -> None:
        if self._judge is None:
            return
        text = "".join(c if c.isprintable() else " " for c in reason)[:MAX_REASON_CHARACTERS]
        try:
            client.send_verdict(bundle, is_healthy=not reason, reason=text)
        except (NotAllowed, ReleaseReplaced) as error:
            logger.warning("the verdict on %s does not count: %s", bundle.release.release, error.message)
