"""A worker that tries every way out of its jail (torture.escapes)."""

from typing import Final

from device_agent.process.channel import JsonObject, Message
from device_agent.process.worker import SupervisorChannel, serve_calls, start_worker
from torture.escape import Target
from torture.escapes import listed_workers, ways_out

# listed before the jail closes the files of the table
WAYS: Final = {worker: ways_out(worker) for worker in listed_workers()}


def attempt(_supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """Try all ways out: call `attempt`.

    Args:
        message: fields `worker`, `folder`, `supervisor`, `sibling`, `abstract`; descriptor of the key.

    Returns:
        The result of each way, by its name: "did" or the name of the error.
    """
    value = message.value
    target = Target(value["folder"], value["supervisor"], value["sibling"], message.fds[0], value["abstract"])
    try:
        return {way.name: way.result(target) for way in WAYS[value["worker"]]}
    finally:
        message.close()


if __name__ == "__main__":
    serve_calls(start_worker()[0], {"attempt": attempt})
