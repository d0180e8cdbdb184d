"""Read the replies of workers.

A worker handles untrusted bytes, so a malformed reply is an error of the worker, and no bug of the supervisor.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from device_agent.errors import WorkerFailed
from device_agent.process.channel import Message


@contextmanager
def parse_reply(name: str, reply: Message | None = None) -> Iterator[None]:
    """Raise WorkerFailed if code in the `with` block finds a malformed message of a worker.

    Args:
        name: the worker's name, for the error message.
        reply: a message whose descriptors the block takes over; after an error they are closed.
    """
    try:
        with ExitStack() as stack:
            if reply is not None:
                stack.callback(reply.close)
            yield
            stack.pop_all()
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise WorkerFailed(f"{name} sent a malformed message ({type(error).__name__}: {str(error)[:200]})") from error
