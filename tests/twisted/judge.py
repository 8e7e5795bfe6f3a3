"""Twisted's own tests of Perspective Broker, turned on a host.

    judge.py PORTS        PORTS: the host's ports by what they are for, as JSON

The tests run as they are. Their server is a relay: it moves the bytes that a test's pump moves over TCP to the host, whose
service `judge` has the objects that the tests publish. What a test does to its server by hand (`a.notify(1)`) the relay does
by a call of its own on the same connection, whose answer the client does not see.

It is strict: what the client asks has to be answered before the pump returns, and an error that nobody took fails the test.
Prints one line of JSON for each test: its name, and what became of it.
"""
import gc
import json
import select
import socket
import sys
import tempfile
import time

from twisted.cred import checkers
from twisted.cred.error import UnauthorizedLogin, UnhandledCredentials
from twisted.internet import defer
from twisted.python import failure, log, reflect
from twisted.spread import banana, jelly, pb
from twisted.spread.test import test_pb, test_pbfailure
from twisted.trial import reporter, runner, unittest

# A guard: what is not answered by then never is.
PATIENCE = 10
# The relay's own calls have numbers from here on.
OWN = 1 << 40
# Calls that are answered later, when something else has happened.
LATER = {b"doItLater"}

PORTS = json.loads(sys.argv[1])


class Splitter(banana.Banana):
    """Whole expressions, each with its bytes."""

    def __init__(self):
        banana.Banana.__init__(self)
        self.setPrefixLimit(64)
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
    writer.setPrefixLimit(64)
    writer.currentDialect = b"pb"
    writer._encode(expression, chunks.append)
    return b"".join(chunks)


class Transport:
    """What tests look at of a server's transport."""

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
    """The server's table of what the client holds, as far as `in` can ask."""

    def __init__(self, holds):
        self.holds = holds

    def __contains__(self, luid):
        return self.holds(luid)


class Relay:
    """A connection to the host, where a test has its server's broker."""

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

    # What a pump does.

    def send(self, data):
        for expression, raw in self.client.feed(data):
            if expression == b"pb":
                self.negotiated = True
            if isinstance(expression, list) and expression[0] in (b"message", b"cachemessage") and expression[4]:
                self.waiting[expression[1]] = expression[3]
            if isinstance(expression, list) and expression[:1] == [b"message"] and expression[3] == b"getFactory":
                # The test's own server makes it in the test's process.
                test_pb.SimpleFactoryCopy(expression[5][1])
            self.write(raw)

    def write(self, data):
        try:
            self.socket.sendall(data)
        except OSError:
            self.close()

    def exchange(self):
        """Everything that the host has to say to what it was asked so far."""
        said = b""
        if not self.negotiated:
            while not said and not self.disconnected:
                said += self.read()
            return said
        barrier, self.asked = self.call_named("root", "judgeBarrier"), False
        end = time.monotonic() + PATIENCE
        while not self.disconnected:
            owed = [number for number, method in self.waiting.items() if method not in LATER]
            if barrier in self.answers and not owed:
                break
            if self.asked and not all(number >= OWN for number in owed):
                # The client has something to answer first.
                break
            if time.monotonic() > end:
                raise AssertionError("no answer to %s" % (", ".join(repr(self.waiting[number]) for number in owed) or "the relay"))
            said += self.read()
        return said

    def read(self):
        """Bytes for the client; answers to the relay's own calls are kept."""
        ready, _, _ = select.select([self.socket], [], [], PATIENCE)
        if not ready:
            raise AssertionError("the host says nothing")
        try:
            data = self.socket.recv(1 << 16)
        except OSError:
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

    # What the relay asks for itself.

    def call_named(self, target, method, *arguments):
        self.own += 1
        message = [b"message", self.own, target if isinstance(target, int) else target.encode(), method.encode(), 1]
        self.write(encoded(message + [jelly.jelly(arguments), jelly.jelly({})]))
        return self.own

    def ask(self, target, method, *arguments):
        """A value, or the class of an error."""
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
        return RuntimeError("%s: %s" % (state[b"type"].decode(), state[b"value"][1].decode()))

    def holds(self, luid):
        found = self.ask(luid, "judgeNothing")
        return "Invalid Object ID" not in str(found)

    def caches(self, luid):
        """Whether the host takes the client's copy for its own: only then it looks for the method."""
        self.own += 1
        arguments = [b"tuple", [b"lcache", luid]]
        self.write(encoded([b"message", self.own, b"obj", b"judgeNothing", 1, arguments, [b"dictionary"]]))
        said = b""
        while self.own not in self.answers:
            said += self.read()
        self.pump.later(said)
        return b"NoSuchMethod" in encoded(self.answers.pop(self.own))

    # What tests call of a broker.

    def setNameForLocal(self, name, thing):
        self.published[name] = thing
        if isinstance(thing, Stands):
            thing.relay, thing.name = self, name
            thing.published()

    def remoteForName(self, name):
        """The server's reference to an object of the client's: it is given, for nobody has named it to the host."""
        return Reflected(self, name)

    def connectionLost(self, reason):
        self.close()

    def close(self):
        if not self.disconnected:
            self.disconnected = True
            self.socket.close()


class Reflected:
    """An object of the client's, called by the host."""

    def __init__(self, relay, name):
        self.relay, self.name = relay, name

    def callRemote(self, method, *arguments):
        relay = self.relay
        thing = relay.pump.client.localObjectForID(self.name.encode())
        root = relay.pump.client.remoteForName("root")
        return root.callRemote("judgeReflect", thing, method, *arguments)


def logged(error):
    """What a server of Twisted's writes into its log, and the tests look for there: the host has a log of its own."""
    if error[0] != b"twisted.spread.pb.CopyableFailure":
        return
    state = dict((key[1], value) for key, value in error[1][1:])
    parents = [parent[1] for parent in state[b"parents"][1:]]
    if b"twisted.spread.pb.Error" in parents:
        return
    try:
        raised = reflect.namedAny(state[b"type"].decode())
        raise raised(state[b"value"][1].decode())
    except Exception:
        log.err(failure.Failure())


class Pump:
    """Moves bytes, as the tests' own does."""

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
        end = time.monotonic() + PATIENCE
        while not self._stop and self.pump():
            if time.monotonic() > end:
                raise AssertionError("the pump does not come to an end")

    def stop(self):
        self._stop = True


def connect(port, clientBroker):
    from io import BytesIO

    from twisted.internet import protocol

    clientIO = BytesIO()
    relay = Relay(port)
    clientBroker.makeConnection(protocol.FileWrapper(clientIO))
    pump = Pump(clientBroker, relay, clientIO)
    pump.pump()
    pump.flush()
    return relay, pump


def ends(test, clientBroker, relay):
    def end():
        relay.close()
        if not clientBroker.disconnected:
            clientBroker.connectionLost(failure.Failure(test_pb.main.CONNECTION_DONE))

    test.addCleanup(end)


def connectServerAndClient(test, clientFactory, serverFactory):
    """In the place of `test_pb.connectServerAndClient`."""
    broker = clientFactory.buildProtocol(("127.0.0.1",))
    port = PORTS["open"]
    portal = getattr(serverFactory.root, "portal", serverFactory.root)
    known = getattr(portal, "checkers", None)
    if known is not None and checkers.ANONYMOUS not in known and not any(
        isinstance(checker, checkers.AllowAnonymousAccess) for checker in known.values()
    ):
        port = PORTS["closed"]
    realm = getattr(portal, "realm", None)
    if isinstance(realm, test_pb.TestRealm):
        realm.lastPerspective = Perspective(port, realm)
    relay, pump = connect(port, broker)
    ends(test, broker, relay)
    serverFactory.protocolInstance = relay
    if isinstance(realm, test_pb.TestRealm):
        realm.lastPerspective.watch(pump)
    return broker, relay, pump


class Perspective:
    """What a test asks its realm's last perspective. Another connection asks the host."""

    def __init__(self, port, realm):
        broker = pb.PBClientFactory().buildProtocol(("127.0.0.1",))
        self.watcher, _ = connect(port, broker)
        _, self.gone = self.watcher.ask("root", "judgeInside")
        self.realm, self.told = realm, False

    @property
    def loggedIn(self):
        inside, _ = self.watcher.ask("root", "judgeInside")
        return bool(inside)

    @property
    def loggedOut(self):
        """The host sees the end of a connection a moment after its client."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            inside, gone = self.watcher.ask("root", "judgeInside")
            if gone > self.gone and not inside:
                return True
        return False

    def watch(self, pump):
        """A perspective of the test's own is told that it is logged out."""
        if self.realm.perspectiveFactory is test_pb.MyPerspective:
            return
        flush, own = pump.flush, self.realm.perspectiveFactory(b"")

        def flushed():
            flush()
            inside, gone = self.watcher.ask("root", "judgeInside")
            if gone > self.gone and not inside and not self.told:
                self.told = True
                own.logout()

        pump.flush = flushed


class Stands:
    """Stands in the test for an object that the host has."""

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
    """Both kinds of pagers."""

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
    """The callback that a pager calls when all is sent: it is the host's to say that it is."""

    def pump(self):
        thing = getattr(self.server, "named", None)
        if thing is not None and self.server.negotiated:
            thing.prepare()
        moved = pump_once(self)
        if thing is not None and thing.callback is not None and self.server.negotiated:
            # A pager calls it when all is sent; the host, when all is answered.
            self.server.send(self.take())
            thing.ask("judgeBarrier")
            if thing.ask("judgePaged"):
                callback, thing.callback = thing.callback, None
                callback(*thing.arguments, **thing.keywords)
        return moved

    return pump


Pump.pump = paged(Pump.pump)


class FakeReactor:
    """`listenTCP` is the host's; all else is the reactor's."""

    def __init__(self, reactor):
        self.reactor = reactor

    def __getattr__(self, name):
        return getattr(self.reactor, name)

    def listenTCP(self, port, factory, **keywords):
        class Address:
            port = PORTS["open"]

        class Port:
            def getHost(self):
                return Address

            def stopListening(self):
                return defer.succeed(None)

        class Nothing:
            class transport:
                loseConnection = staticmethod(lambda: None)

        opened = Port()
        opened.factory = factory
        factory.protocolInstance = Nothing
        d, factory.connectionMade = factory.connectionMade, defer.succeed(None)
        return opened

    def connectTCP(self, host, port, factory):
        return self.reactor.connectTCP("127.0.0.1", port, factory)


def iosim(server, client, **keywords):
    """In the place of `twisted.test.iosim.connectedServerAndClient`, for the tests of failures."""
    made = server()
    port = PORTS["traces" if made.factory.unsafeTracebacks else "open"]
    broker = client()
    relay, pump = connect(port, broker)
    relay.factory = made.factory
    OPEN.append((broker, relay))
    return relay, broker, pump


OPEN = []


def replace():
    test_pb.connectServerAndClient = connectServerAndClient
    test_pb.IOPump = Pump
    test_pb.Observable, test_pb.DeferredRemote = Observable, DeferredRemote
    test_pb.NestedComplicatedCache = NestedComplicatedCache
    test_pb.Pagerizer = test_pb.FilePagerizer = Pages
    test_pb.reactor = FakeReactor(test_pb.reactor)
    test_pbfailure.connectedServerAndClient = iosim


# Tests that cannot apply, each with its reason.
NOT = {
    "NewCredTests.test_loginConnectionRefused": "no server: it is about the client's factory alone",
    "NewStyleTests.test_alloc": "counts the Python objects that its server makes",
    "NewCredTests.test_immediateClose": "calls the server's Python broker with a transport of its own",
}


def cases():
    for module, classes in (
        (test_pb, ("BrokerTests", "PagingTests", "NewStyleTests", "NewStyleCachedTests", "NewCredTests")),
        (test_pbfailure, ("PBFailureTests", "PBFailureUnsafeTests")),
    ):
        for name in classes:
            yield getattr(module, name)


class Report(reporter.Reporter):
    """One line for each test."""

    def say(self, test, what, why=None):
        name = ".".join(test.id().split(".")[-2:])
        print(json.dumps({"test": name, "result": what, "why": why}), flush=True)

    def addSuccess(self, test):
        reporter.Reporter.addSuccess(self, test)
        self.say(test, "passed")

    def addError(self, test, error):
        reporter.Reporter.addError(self, test, error)
        self.say(test, "failed", error.getTraceback() if hasattr(error, "getTraceback") else str(error))

    addFailure = addError

    def addSkip(self, test, reason):
        self.say(test, "skipped", str(reason))

    def done(self):
        pass


def main():
    replace()
    wanted = sys.argv[2:]
    suite = runner.TestSuite()
    for case in cases():
        for name in names(case):
            whole = "%s.%s" % (case.__name__, name)
            if whole in NOT:
                print(json.dumps({"test": whole, "result": "does not apply", "why": NOT[whole]}), flush=True)
            elif not wanted or whole in wanted:
                test = case(name)
                test.addCleanup(finish)
                suite.addTest(test)

    def make(*arguments, **keywords):
        return Report(open("/dev/null", "w"), *arguments[1:], **keywords)

    with tempfile.TemporaryDirectory() as folder:
        runner.TrialRunner(make, workingDirectory=folder + "/judge").run(suite)


def names(case):
    return sorted(name for name in dir(case) if name.startswith("test"))


def finish():
    """Errors that nobody took are logged when they are collected: then trial sees them."""
    while OPEN:
        broker, relay = OPEN.pop()
        relay.close()
        if not broker.disconnected:
            broker.connectionLost(failure.Failure(test_pb.main.CONNECTION_DONE))
    gc.collect()


main()
