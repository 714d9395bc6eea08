"""The connection to the broker, and the threads that answer what comes over it."""

import logging
import secrets
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import inf
from typing import Any, NamedTuple

from paho.mqtt.client import Client, DisconnectFlags, MQTTMessage, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from orchmgmt.client.connections import UnusableFile, tls_context
from orchmgmt.extensions.mqtt.broker import Broker
from orchmgmt.extensions.mqtt.messages import Answer, Messages
from orchmgmt.serving.threads import EXTRA_THREADS, ThreadCount
from orchmgmt.settings import PREFIX, SettingError, Settings

log = logging.getLogger("orchmgmt")

#: The first pause after a failure, in seconds; each further one is twice as long, up to the
#: longest. A connection that lasted as long as that begins anew.
AGAIN = 1.0
LONGEST_PAUSE = 60.0

#: So many requests a broker may send before it has an acknowledgement: all others wait there. With
#: so many answers that the broker has not taken, no further request is done.
AT_ONCE = 100

#: Requests of so many bytes are in memory; then nothing more is read. Brokers exceed `AT_ONCE`
#: (Mosquitto 2.0 does), and requests of QoS 0 have no acknowledgement.
MOST_BYTES = 64 * 1024 * 1024

#: What a request takes beside its message, in bytes.
OF_A_MESSAGE = 1000

#: The connection is lost if the broker is silent for about so long, in seconds.
KEEP_ALIVE = 60

#: How often the number of threads is set while requests wait for one, in seconds.
CHECK_INTERVAL = 0.05

#: How long the thread of the connection sleeps at most, in seconds.
IDLE = 1.0

#: How long the requests that have come may take at the end, in seconds.
DRAIN_TIMEOUT = 30.0

#: The largest packet that MQTT has, in bytes, and how much of a packet its topic and properties may
#: take.
LARGEST_PACKET = 268_435_455
LARGEST_HEAD = 4096


class Lost(Exception):
    """The connection has ended, or could not be made; its text says why."""


class TooOld(Exception):
    """The broker does not speak MQTT 5, or has no shared subscriptions."""


class Received(NamedTuple):
    """A message that has come: what is needed of paho's, which takes several thousand bytes.

    Attributes:
        topic: where it came.
        payload: what it says.
        connection: the number of the connection over which it came.
        mid: its number there.
        qos: with which quality of service it came.
    """

    topic: str
    payload: bytes
    connection: int
    mid: int
    qos: int

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        return len(self.payload) + OF_A_MESSAGE


class Connection:
    """Takes requests from a broker, and publishes the answers.

    One thread has the connection. It alone touches paho's client, which is not safe to use from
    several threads in its own loop, and whose loop takes no file number above 1,024. Other threads
    do what the requests ask for.

    A request is acknowledged when it has been done and its answer is on its way. It is never done
    from an earlier connection's session, which ends with the connection.

    Args:
        settings: they say where the broker is.
        messages: what does the requests; without it, none are taken.

    Attributes:
        broker: where the broker is.
        connected: whether requests can come.

    Raises:
        SettingError: the URL or a file of certificates cannot be used.
    """

    def __init__(self, settings: Settings, messages: Messages | None = None) -> None:
        self.broker = Broker.of(settings)
        self._settings = settings
        self._messages = messages
        self._tls = _tls(settings) if self.broker.tls else None
        self._operations = messages.operations if messages else {}
        self._name = settings.own_name
        self._version = MQTTProtocolVersion.MQTTv5
        self._threads = ThreadCount(settings.usual_threads)
        self._places = settings.usual_threads
        self._adapted = 0.0
        self._received: deque[Received] = deque()
        self._under_way = 0
        self._bytes = 0  # of the requests that are here and not done
        self._done: deque[tuple[Received, Answer | None]] = deque()  # what other threads hand over
        self._answers: deque[tuple[Received, Answer | None]] = deque()
        self._unsent: list[MQTTMessageInfo] = []
        self._number = 0
        self._trouble: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self.connected = False

    def start(self) -> None:
        """Connect, and stay connected until `stop`."""
        self._prepare()
        self._pool = ThreadPoolExecutor(
            self._settings.usual_threads + EXTRA_THREADS, thread_name_prefix="mqtt"
        )
        self._thread.start()

    def stop(self) -> None:
        """Take no more requests, answer those that have come, and disconnect."""
        self._stopping.set()
        self._wake()
        self._thread.join()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._ear.close()
        self._mouth.close()

    def look(self) -> bool:
        """Connect once, and return whether the broker has shared subscriptions.

        Raises:
            Lost: that is not possible now.
        """
        self._prepare()
        try:
            self._connect()
            return self._shared
        finally:
            self._hang_up()
            self._ear.close()
            self._mouth.close()

    def _prepare(self) -> None:
        self._ear, self._mouth = socket.socketpair()
        self._ear.setblocking(False)
        self._mouth.setblocking(False)
        self._client = self._new_client()

    def _run(self) -> None:
        pause = AGAIN
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._connect()
                self._serve()
                log.info("MQTT: disconnected from %s", self.broker)
                return
            except Lost as error:
                if not self._stopping.is_set():
                    self._tell(str(error))
            except Exception:
                log.exception("MQTT: the connection to %s failed; retrying", self.broker)
            finally:
                self.connected = False
                self._hang_up()
            if time.monotonic() - began > LONGEST_PAUSE:
                pause = AGAIN
            self._stopping.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _hang_up(self) -> None:
        """Close the connection if it is still there: the broker would go on sending."""
        self._client.disconnect()
        connection: Any = self._client.socket()
        if connection is not None:
            connection.close()

    def _tell(self, trouble: str) -> None:
        if trouble != self._trouble:
            log.warning("MQTT: not connected to %s: %s; retrying", self.broker, trouble)
        self._trouble = trouble

    def _new_client(self) -> Client:
        # Without shared subscriptions one process alone may serve: the broker keeps the last.
        alone = self._version != MQTTProtocolVersion.MQTTv5 and self._operations
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._name if alone else f"{self._name}-{secrets.token_hex(4)}",
            protocol=self._version,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = self._settings.connect_timeout_seconds
        if self.broker.user is not None:
            client.username_pw_set(self.broker.user, self.broker.password)
        if self._tls:
            client.tls_set_context(self._tls)
        client.on_socket_open = _send_at_once
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_unsubscribe = self._on_unsubscribe
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    def _connect(self) -> None:
        """Connect and subscribe, with MQTT 3.1.1 if there are no shared subscriptions.

        Raises:
            Lost: that is not possible now.
        """
        try:
            self._try()
        except TooOld:
            self._hang_up()
            self._version = MQTTProtocolVersion.MQTTv311
            self._client = self._new_client()
            self._try()

    def _try(self) -> None:
        self._number += 1
        while self._received:  # the broker has forgotten them, or gives them to another process
            self._bytes -= self._received.popleft().size
        self._end: Exception | None = None
        self._asked = self._came = False
        self._quiet = 0
        self._largest = LARGEST_PACKET
        self._highest_qos = 2
        self._most_unsent = AT_ONCE
        self._shared = self._version == MQTTProtocolVersion.MQTTv5
        options: dict[str, Any] = {}
        if self._shared:
            properties = Properties(PacketTypes.CONNECT)
            properties.ReceiveMaximum = AT_ONCE
            # The broker drops what is larger, and what is a little too large is answered.
            properties.MaximumPacketSize = min(
                2 * self._settings.max_body_bytes + LARGEST_HEAD, LARGEST_PACKET
            )
            options = {"clean_start": True, "properties": properties}
        try:
            self._client.connect(self.broker.host, self.broker.port, KEEP_ALIVE, **options)
        except OSError as error:
            raise Lost(error.strerror or str(error)) from None
        deadline = time.monotonic() + (
            self._settings.connect_timeout_seconds + self._settings.read_timeout_seconds
        )
        while not self.connected:
            if time.monotonic() > deadline:
                raise Lost("it does not answer")
            if self._stopping.is_set():
                raise Lost("this process ends")
            self._turn()

    def _serve(self) -> None:
        """Take requests and publish answers, until this process ends.

        Raises:
            Lost: the connection has ended.
        """
        deadline = inf
        while self._quiet < 2:
            self._turn()
            if not self._stopping.is_set():
                continue
            now = time.monotonic()
            if deadline == inf:
                deadline = now + DRAIN_TIMEOUT
                self._unsubscribe()
            elif now > deadline:
                undone = self._received or self._under_way
                trouble = "some requests were not done" if undone else "the broker did not answer"
                log.warning("MQTT: %s within %d s", trouble, DRAIN_TIMEOUT)
                break
            elif not (self._asked or self._busy):
                self._unsubscribe()
        # Answers of QoS 0 that a slow broker has not read go first.
        self._client.disconnect()
        with suppress(Lost):
            while time.monotonic() < deadline:
                self._turn()

    def _unsubscribe(self) -> None:
        """Unsubscribe, maybe once more.

        Brokers go on sending what they have for this process, so it is over when nothing has come
        between two answers to this.
        """
        self._client.unsubscribe(list(self._filters()))
        self._asked, self._came = True, False

    @property
    def _busy(self) -> bool:
        here = self._received or self._under_way or self._answers or self._unsent
        return bool(here) or self._client.want_write()

    def _turn(self) -> None:
        """Do what there is to be done, after waiting for it for a moment.

        Raises:
            Lost: the connection has ended.
            TooOld: the broker refuses it because of the version.
        """
        if self._end:
            raise self._end
        connection: Any = self._client.socket()
        if connection is None:
            raise Lost("the connection was lost")
        events = select.POLLIN if self._has_room() else 0
        if self._client.want_write():
            events |= select.POLLOUT
        # TLS may have read more than it has been asked for.
        waits = events & select.POLLIN and self._tls and connection.pending()
        poll = select.poll()
        poll.register(self._ear, select.POLLIN)
        if events:
            poll.register(connection, events)
        pause = 0 if waits else CHECK_INTERVAL if self._received else IDLE
        ready = dict(poll.poll(pause * 1000))
        with suppress(BlockingIOError):
            self._ear.recv(AT_ONCE)
        if waits or ready.get(connection.fileno(), 0) & ~select.POLLOUT:
            self._client.loop_read()
        if self._client.want_write():
            self._client.loop_write()
        self._client.loop_misc()
        self._publish_answers()
        self._begin()

    def _has_room(self) -> bool:
        """Return whether to read what the broker sends.

        Otherwise it is read once some requests have been done. That must not depend on what is not
        read: acknowledgements, without which no more answers go out, lie behind other requests.

        Raises:
            Lost: it does depend on it.
        """
        if self._bytes <= MOST_BYTES:
            return True
        if len(self._answers) >= AT_ONCE:
            raise Lost("it sends much and takes no answers")
        return False

    def _begin(self) -> None:
        """Have requests done, as many as there are threads for."""
        now = time.monotonic()
        if self._received and now > self._adapted + CHECK_INTERVAL:
            self._threads.adapt(self._set_places)
            self._adapted = now
        while self._received and self._under_way < self._places and len(self._answers) < AT_ONCE:
            self._under_way += 1
            self._pool.submit(self._do, self._received.popleft())

    def _set_places(self, count: int) -> None:
        self._places = count

    def _do(self, received: Received) -> None:
        """Do a request. In a thread of the pool."""
        assert self._messages
        answer = None
        topic = received.topic
        try:
            answer = self._threads.timed(self._messages.answer)(
                self._operations[topic], topic, received.payload, self._largest - LARGEST_HEAD
            )
        except Exception:
            log.exception("%r failed", topic)
        self._done.append((received, answer))
        self._wake()

    def _wake(self) -> None:
        """Wake the thread of the connection."""
        with suppress(OSError):  # it is awake already, or has ended
            self._mouth.send(b"\0")

    def _publish_answers(self) -> None:
        while self._done:
            self._answers.append(self._done.popleft())
            self._under_way -= 1
            self._bytes -= self._answers[-1][0].size
        self._unsent = [it for it in self._unsent if _is_under_way(it)]
        while (
            self._answers
            and self.connected
            and not self._end
            and len(self._unsent) < self._most_unsent
        ):
            received, answer = self._answers.popleft()
            if answer:
                qos = min(answer.qos, self._highest_qos)
                self._unsent.append(self._client.publish(answer.topic, answer.payload, qos))
            self._acknowledge(received)

    def _acknowledge(self, received: Received) -> None:
        if received.connection == self._number:
            self._client.ack(received.mid, received.qos)

    def _filters(self) -> Iterator[str]:
        for topic in self._operations:
            yield f"$share/{self._name}/{topic}" if self._shared else topic

    def _on_connect(
        self, client: Client, _: object, flags: object, reason: ReasonCode, properties: object
    ) -> None:
        shares = getattr(properties, "SharedSubscriptionAvailable", 1)
        if self._shared and (reason == "Unsupported protocol version" or not shares):
            self._end = TooOld()
            return
        if reason.is_failure:
            self._end = Lost(f"it refuses the connection: {reason}")
            return
        self._largest = getattr(properties, "MaximumPacketSize", LARGEST_PACKET)
        self._highest_qos = getattr(properties, "MaximumQoS", 2)
        self._most_unsent = getattr(properties, "ReceiveMaximum", AT_ONCE)
        if not self._operations:
            self.connected = True
        elif self._version == MQTTProtocolVersion.MQTTv5:
            options = SubscribeOptions(qos=2, retainHandling=SubscribeOptions.RETAIN_DO_NOT_SEND)
            client.subscribe([(it, options) for it in self._filters()])
        else:
            client.subscribe([(it, 2) for it in self._filters()])

    def _on_subscribe(
        self, client: Client, _: object, mid: int, reasons: list[ReasonCode], properties: object
    ) -> None:
        refusals = [str(it) for it in reasons if it.is_failure]
        if refusals:
            self._end = Lost(f"it does not let this system subscribe: {refusals[0]}")
            return
        self.connected, self._trouble = True, None
        if self._shared:
            log.info("MQTT: connected to %s, and other processes may share the work", self.broker)
        else:
            log.warning(
                "MQTT: connected to %s, which has no shared subscriptions: only one process may "
                "serve over it",
                self.broker,
            )

    def _on_unsubscribe(self, *_: object) -> None:
        self._asked = False
        self._quiet = 0 if self._came or self._busy else self._quiet + 1

    def _on_disconnect(
        self, client: Client, _: object, flags: DisconnectFlags, reason: ReasonCode, *more: object
    ) -> None:
        said = str(reason) if flags.is_disconnect_packet_from_server else "the connection was lost"
        self._end = self._end or Lost(said)

    def _on_message(self, client: Client, _: object, message: MQTTMessage) -> None:
        assert self._messages
        self._came = True
        topic = message.topic
        received = Received(topic, bytes(message.payload), self._number, message.mid, message.qos)
        if message.retain or topic not in self._operations:
            # What is retained would be done again at each start.
            self._messages.ignore(topic, "it is retained, or nobody has asked for it")
            self._acknowledge(received)
        else:
            self._bytes += received.size
            self._received.append(received)


def _send_at_once(client: Client, _: object, connection: Any) -> None:
    """Let no acknowledgement wait for the one before it."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _is_under_way(info: MQTTMessageInfo) -> bool:
    try:
        return not info.is_published()
    except RuntimeError:  # it is lost
        return False


def _tls(settings: Settings) -> ssl.SSLContext:
    ca = "mqtt_ca_file" if settings.mqtt_ca_file else "ca_file"
    try:
        return tls_context(
            getattr(settings, ca) or None,
            settings.certificate_file or None,
            settings.key_file or None,
            alpn="mqtt",
        )
    except UnusableFile as error:
        name = ca if error.argument == "ca" else f"{error.argument}_file"
        raise SettingError(f"{PREFIX}{name.upper()} cannot be used: {error.reason}") from None
