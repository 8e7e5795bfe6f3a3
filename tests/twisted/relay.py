"""A relay to a host, which takes the place of the server's broker in Twisted's own tests.

For Python 2.7 with Twisted 2.1.0, and for today's Python and Twisted. See `judge.py`.
"""
import select
import socket
import time
from io import BytesIO

from twisted.internet import protocol
from twisted.python import failure, log, reflect
from twisted.spread import banana, jelly

# A guard against hanging: the timeout, in seconds.
PATIENCE = 10
# The first request number of the relay's own calls.
OWN = 1 << 40
# Methods whose answer comes later, after another event.
LATER = {b"doItLater"}


def text(data):
    """Returns a `str`, on either Python."""
    return data if isinstance(data, str) else data.decode()


def limit(reader):
    """Sets the prefix limit, which today's Banana would get from its connection."""
    if hasattr(reader, "setPrefixLimit"):
        reader.setPrefixLimit(64)


class Splitter(banana.Banana):
    """Splits a stream into whole expressions, each with its bytes."""

    def __init__(self):
        banana.Banana.__init__(self)
        limit(self)
        self.currentDialect = b"pb"
        self.found = []
        self.raw = b""

    def expressionReceived(self, expression):
        self.found.append(expression)

    def feed(self, data):
        for at in range(len(data)):
            byte = data[at : at + 1]
            self.raw += byte
            self.dataReceived(byte)
            if self.found:
                raw, self.raw = self.raw, b""
                yield self.found.pop(), raw


def encoded(expression):
    chunks = []
    writer = banana.Banana()
    limit(writer)
    writer.currentDialect = b"pb"
    writer._encode(expression, chunks.append)
    return b"".join(chunks)


class Transport:
    """The part of a server's transport that tests use."""

    def __init__(self, relay):
        self.relay = relay

    @property
    def closed(self):
        return self.relay.disconnected

    def loseConnection(self):
        self.relay.close()

    def _checkProducer(self):
        pass


class Held:
    """A server's table of objects that the client holds. It supports only `in`."""

    def __init__(self, holds):
        self.holds = holds

    def __contains__(self, luid):
        return self.holds(luid)

    has_key = __contains__


class Relay:
    """A connection to the host, in place of a test's server-side broker."""

    # Creates the copy that a test's factory must find.
    make = None

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.transport = Transport(self)
        self.disconnected = False
        self.client, self.server = Splitter(), Splitter()
        self.negotiated = False
        self.waiting = {}
        self.asked = False
        self.own, self.answers = OWN, {}
        self.published = {}
        self._localCleanup = {}
        self.localObjects = Held(self.holds)
        self.remotelyCachedObjects = Held(self.caches)

    # Used by the pump.

    def send(self, data):
        for expression, raw in self.client.feed(data):
            if expression == b"pb":
                self.negotiated = True
            if isinstance(expression, list) and expression[0] in (b"message", b"cachemessage") and expression[4]:
                self.waiting[expression[1]] = expression[3]
            if isinstance(expression, list) and expression[:1] == [b"message"] and expression[3] == b"getFactory":
                # The test's own server would create it in the test's process.
                self.make(expression[5][1])
            self.write(raw)

    def write(self, data):
        try:
            self.socket.sendall(data)
        except (OSError, IOError):
            self.close()

    def exchange(self):
        """Returns everything that the host sends in reply to the calls so far."""
        said = b""
        if not self.negotiated:
            while not said and not self.disconnected:
                said += self.read()
            return said
        barrier, self.asked = self.call_named("root", "judgeBarrier"), False
        end = time.time() + PATIENCE
        while not self.disconnected:
            owed = [number for number, method in self.waiting.items() if method not in LATER]
            if barrier in self.answers and not owed:
                break
            if self.asked and not all(number >= OWN for number in owed):
                # The client must answer a call first.
                break
            if time.time() > end:
                raise AssertionError("no answer to %s" % (", ".join(repr(self.waiting[number]) for number in owed) or "the relay"))
            said += self.read()
        return said

    def read(self):
        """Returns bytes for the client. Keeps the answers to the relay's own calls."""
        ready, _, _ = select.select([self.socket], [], [], PATIENCE)
        if not ready:
            raise AssertionError("the host says nothing")
        try:
            data = self.socket.recv(1 << 16)
        except (OSError, IOError):
            data = b""
        if not data:
            self.close()
            return b""
        said = b""
        for expression, raw in self.server.feed(data):
            if isinstance(expression, list) and expression[0] in (b"answer", b"error"):
                number = expression[1]
                if number >= OWN:
                    self.answers[number] = expression
                    continue
                self.waiting.pop(number, None)
                if expression[0] == b"error":
                    logged(expression[2])
            self.asked |= isinstance(expression, list) and expression[0] == b"message"
            said += raw
        return said

    # The relay's own calls.

    def call_named(self, target, method, *arguments):
        self.own += 1
        message = [b"message", self.own, target if isinstance(target, int) else target.encode(), method.encode(), 1]
        self.write(encoded(message + [jelly.jelly(arguments), jelly.jelly({})]))
        return self.own

    def ask(self, target, method, *arguments):
        """Returns the answer, or the error as a `RuntimeError`."""
        number, said = self.call_named(target, method, *arguments), b""
        while number not in self.answers:
            if self.disconnected:
                raise AssertionError("the host has closed the connection")
            said += self.read()
        self.pump.later(said)
        kind, _, value = self.answers.pop(number)
        if kind == b"answer":
            return jelly.unjelly(value)
        state = dict((key[1] if isinstance(key, list) else key, value) for key, value in value[1][1:])
        return RuntimeError("%s: %s" % (text(state[b"type"]), text(state[b"value"][1])))

    def holds(self, luid):
        found = self.ask(luid, "judgeNothing")
        return "Invalid Object ID" not in str(found)

    def caches(self, luid):
        """Whether the host recognises the client's copy as its own object: only then does it look for the method."""
        self.own += 1
        arguments = [b"tuple", [b"lcache", luid]]
        self.write(encoded([b"message", self.own, b"obj", b"judgeNothing", 1, arguments, [b"dictionary"]]))
        said = b""
        while self.own not in self.answers:
            said += self.read()
        self.pump.later(said)
        return b"NoSuchMethod" in encoded(self.answers.pop(self.own))

    # The methods of a broker that tests call.

    def setNameForLocal(self, name, thing):
        self.published[name] = thing
        if isinstance(thing, Stands):
            thing.relay, thing.name = self, name
            thing.published()

    def remoteForName(self, name):
        """The server's reference to an object of the client. Calls pass the object itself: the host has no name for it."""
        return Reflected(self, name)

    def connectionLost(self, reason):
        self.close()

    def close(self):
        if not self.disconnected:
            self.disconnected = True
            self.socket.close()


class Reflected:
    """An object of the client that the host calls."""

    def __init__(self, relay, name):
        self.relay, self.name = relay, name

    def callRemote(self, method, *arguments):
        relay = self.relay
        thing = relay.pump.client.localObjectForID(self.name.encode())
        root = relay.pump.client.remoteForName("root")
        return root.callRemote("judgeReflect", thing, method, *arguments)


def logged(error):
    """Logs an error as a Twisted server would, because tests look for it in the log. The host has a log of its own."""
    if error[0] != b"twisted.spread.pb.CopyableFailure":
        return
    state = dict((key[1], value) for key, value in error[1][1:])
    parents = [parent[1] for parent in state[b"parents"][1:]]
    if b"twisted.spread.pb.Error" in parents:
        return
    try:
        raised = reflect.namedAny(text(state[b"type"]))
        raise raised(text(state[b"value"][1]))
    except Exception:
        log.err(failure.Failure())


class Pump:
    """Moves bytes, as the tests' own pump does."""

    def __init__(self, client, relay, clientIO):
        self.client, self.server, self.clientIO = client, relay, clientIO
        self.kept = b""
        relay.pump = self

    def later(self, said):
        self.kept += said

    def take(self):
        self.clientIO.seek(0)
        data = self.clientIO.read()
        self.clientIO.seek(0)
        self.clientIO.truncate()
        return data

    def pump(self):
        data = self.take()
        self.client.transport._checkProducer()
        self.server.send(data)
        said = b""
        if not self.server.disconnected:
            said = self.server.exchange()
        said, self.kept = self.kept + said, b""
        for at in range(len(said)):
            self.client.dataReceived(said[at : at + 1])
        if self.server.disconnected and not self.client.disconnected:
            self.client.transport.closed = True
        return bool(data or said)

    def flush(self, *_):
        self._stop = False
        end = time.time() + PATIENCE
        while not self._stop and self.pump():
            if time.time() > end:
                raise AssertionError("the pump does not come to an end")

    def stop(self):
        self._stop = True


def connect(port, clientBroker):
    clientIO = BytesIO()
    relay = Relay(port)
    clientBroker.makeConnection(protocol.FileWrapper(clientIO))
    pump = Pump(clientBroker, relay, clientIO)
    pump.pump()
    pump.flush()
    return relay, pump


class Stands:
    """Represents an object of the host in the test."""

    relay = None

    def published(self):
        pass

    def ask(self, method, *arguments):
        return self.relay.ask(self.name, method, *arguments)


class Observable(Stands):
    def notify(self, obj):
        self.ask("judgeNotify", obj)


class Later:
    def __init__(self, thing):
        self.thing = thing

    def callback(self, value):
        self.thing.ask("judgeFire", value)


class DeferredRemote(Stands):
    @property
    def d(self):
        return Later(self)

    @property
    def run(self):
        return self.ask("judgeRun")


class Complicated:
    def __init__(self, thing):
        self.thing = thing

    def setFoo4(self):
        self.thing.ask("judgeSetFoo", 4)

    @property
    def observer(self):
        return self.thing.ask("judgeObservers") or None


class NestedComplicatedCache(Stands):
    @property
    def c(self):
        return Complicated(self)


class Sent:
    chunks = []


class Pages(Stands):
    """Replaces both kinds of pagers."""

    pager = Sent()

    def __init__(self, *arguments, **keywords):
        arguments = list(arguments)
        self.data = None
        if isinstance(arguments[0], str):
            with open(arguments.pop(0), "rb") as file:
                self.data = file.read()
        self.callback, self.arguments, self.keywords = arguments[0], arguments[1:], keywords

    def published(self):
        self.relay.named = self

    def prepare(self):
        if self.data is not None:
            self.ask("judgeData", self.data)
            self.data = None


def paged(pump_once):
    """Calls a pager's callback once the host reports that everything is sent."""

    def pump(self):
        thing = getattr(self.server, "named", None)
        if thing is not None and self.server.negotiated:
            thing.prepare()
        moved = pump_once(self)
        if thing is not None and thing.callback is not None and self.server.negotiated:
            # A pager calls it when everything is sent. The host counts the pages as sent when all of them are answered.
            self.server.send(self.take())
            thing.ask("judgeBarrier")
            if thing.ask("judgePaged"):
                callback, thing.callback = thing.callback, None
                callback(*thing.arguments, **thing.keywords)
        return moved

    return pump


Pump.pump = paged(Pump.pump)
