"""A private Mosquitto, a client that asks over it, and a line to it that goes wrong."""

import json
import signal
import socket
import subprocess
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from needs import program
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from support import until

BASE = "arrowhead/serviceorchestration/orchestration/management/"
SYSOP = "SYSTEM//Sysop"


class Broker:
    """Mosquitto on a free port.

    Args:
        folder: for its configuration and its log.
        more: lines of its configuration.
        text: a whole configuration instead, for port 8883.

    Attributes:
        port: where it listens.
        url: likewise, as `MQTT_URL` has it.
    """

    def __init__(self, folder: Path, *more: str, text: str = "", scheme: str = "mqtt") -> None:
        self._program = program("mosquitto")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self._configuration = folder / f"mosquitto-{self.port}.conf"
        self.log = folder / f"mosquitto-{self.port}.log"
        # Started by root, it would give up the right to read the test's files.
        own = ["user root", "max_queued_messages 0"]
        lines = [*own, f"listener {self.port} 127.0.0.1", *more]
        if not any("allow_anonymous" in it for it in lines):
            lines.append("allow_anonymous true")
        if text:
            lines = [own[0], text.replace("listener 8883", f"listener {self.port} 127.0.0.1")]
        self._configuration.write_text("\n".join(lines) + "\n")
        self.start()

    def start(self) -> None:
        with self.log.open("a") as log:
            command = [self._program, "-c", str(self._configuration)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        until(self._listens)

    def _listens(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5):
            return True
        return False

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.send_signal(number)
        self._process.wait(60)


class Peer:
    """A client of the broker that sends requests, and gets the answers at a topic of its own.

    Attributes:
        topic: that topic.
        heard: the topics of the messages that have come.
    """

    def __init__(
        self,
        url: str,
        version: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5,
        tls: Callable[[Client], object] | None = None,
        topic: str = "",
    ) -> None:
        self.topic = topic or f"answers/{uuid.uuid4()}"
        self.heard: set[str] = set()
        self._answers: defaultdict[str, SimpleQueue[Any]] = defaultdict(SimpleQueue)
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=version)
        if tls:
            tls(self._client)
        self._ready = threading.Event()
        self._client.on_connect = lambda client, *_: client.subscribe(f"{self.topic}/#", 2)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = lambda _client, _data, it: self._hear(it)
        host, _, port = url.partition("://")[2].partition(":")
        self._client.connect(host, int(port))
        self._client.loop_start()
        assert self._ready.wait(30)

    def _hear(self, message: Any) -> None:
        self.heard.add(message.topic)
        self._answers[message.topic].put(message)

    def listen(self, *topics: str) -> None:
        """Subscribe to others' topics, or try to."""
        for topic in topics:
            self._ready.clear()
            self._client.subscribe(topic, 2)
            assert self._ready.wait(30)

    def send(
        self, operation: str, message: bytes | dict[str, Any], qos: int = 1, retain: bool = False
    ) -> None:
        """Publish a message at an operation's topic, and wait until the broker has it."""
        whole = message if isinstance(message, bytes) else json.dumps(message).encode()
        self._client.publish(BASE + operation, whole, qos, retain).wait_for_publish(30)

    def request(self, payload: Any = None, **keys: Any) -> dict[str, Any]:
        """A request of the operator with a topic of its own for the answer."""
        topic = f"{self.topic}/{uuid.uuid4()}"
        whole = {"authentication": SYSOP, "responseTopic": topic, "payload": payload, **keys}
        return {key: it for key, it in whole.items() if it is not ABSENT}

    def ask(self, operation: str, payload: Any = None, qos: int = 1, **keys: Any) -> dict[str, Any]:
        """Send a request, and return the answer."""
        request = self.request(payload, **keys)
        self.send(operation, request, qos)
        return self.answer(request)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Wait for the answer to a request."""
        return json.loads(self.received(request).payload)

    def received(self, request: dict[str, Any]) -> Any:
        """As `answer`, as the message that it is."""
        return self._answers[request["responseTopic"]].get(timeout=60)

    def answers_so_far(self) -> list[dict[str, Any]]:
        """Take the answers that have come and that nobody has waited for."""
        found = []
        for queue in list(self._answers.values()):
            while not queue.empty():
                found.append(json.loads(queue.get().payload))
        return found

    def silence(self) -> bool:
        """Whether there are no answers that nobody has waited for."""
        return all(it.empty() for it in self._answers.values())

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


ABSENT = object()


class Line:
    """A TCP line to a broker, which can be cut, and can play one that only speaks MQTT 3.1.1.

    Attributes:
        url: where it begins.
        old: whether it refuses MQTT 5.
        refusing: whether it is cut at once.
        connections: how many there were.
    """

    def __init__(self, broker: Broker, old: bool = False) -> None:
        self._broker = broker
        self.old = old
        self.refusing = False
        self.connections = 0
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Drop all connections."""
        for it in self._open:
            with suppress(OSError):
                it.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                if self.refusing:
                    client.close()
                else:
                    threading.Thread(target=self._begin, args=[client], daemon=True).start()

    def _begin(self, client: socket.socket) -> None:
        with suppress(OSError):
            hello = client.recv(65536)
            # CONNECT: its type, a length of one byte or two, `MQTT`, the version
            if self.old and hello[hello.index(b"MQTT") + 4] == 5:
                client.sendall(b"\x20\x02\x00\x01")  # CONNACK: this version is not supported
                client.close()
                return
            server = socket.create_connection(("127.0.0.1", self._broker.port))
            self._open += [client, server]
            server.sendall(hello)
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=[source, target], daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while part := source.recv(65536):
                target.sendall(part)
        for it in (source, target):
            with suppress(OSError):
                it.shutdown(socket.SHUT_RDWR)
        source.close()
