"""Twisted's own tests of Perspective Broker, run against a host.

        judge.py PORTS [TEST...]        PORTS: the host's ports by purpose, as JSON; without TEST, all tests run

The tests run unmodified. A relay takes the place of their server: it forwards the bytes that a test's pump moves, over TCP, to
the host, whose service `judge` has the objects that the tests publish. Where a test manipulates its server's objects directly
(`a.notify(1)`), the relay makes a call of its own on the same connection. The client does not see the answer.

It is strict: the host must answer all calls of the client before the pump returns, and an unhandled error fails the test.
Prints one line of JSON for each test: its name and its result.
"""
import gc
import json
import sys
import tempfile
import time

from relay import (
    PATIENCE,
    DeferredRemote,
    NestedComplicatedCache,
    Observable,
    Pages,
    Pump,
    Relay,
    connect,
)

from twisted.cred import checkers
from twisted.internet import defer
from twisted.python import failure
from twisted.spread import pb
from twisted.spread.test import test_pb, test_pbfailure
from twisted.trial import reporter, runner, unittest

PORTS = json.loads(sys.argv[1])


def ends(test, clientBroker, relay):
    def end():
        relay.close()
        if not clientBroker.disconnected:
            clientBroker.connectionLost(failure.Failure(test_pb.main.CONNECTION_DONE))

    test.addCleanup(end)


def connectServerAndClient(test, clientFactory, serverFactory):
    """Replaces `test_pb.connectServerAndClient`."""
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
    """Answers a test's questions to its realm's last perspective. It asks the host on another connection."""

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
        """Polls: the host notices the end of a connection a moment after the client does."""
        end = time.time() + PATIENCE
        while time.time() < end:
            inside, gone = self.watcher.ask("root", "judgeInside")
            if gone > self.gone and not inside:
                return True
        return False

    def watch(self, pump):
        """Notifies a test's own perspective when the host has logged it out."""
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


class FakeReactor:
    """Delegates to the real reactor, except that `listenTCP` returns the host's port and `connectTCP` uses 127.0.0.1."""

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
    """Replaces `twisted.test.iosim.connectedServerAndClient`, for the tests of failures."""
    made = server()
    port = PORTS["traces" if made.factory.unsafeTracebacks else "open"]
    broker = client()
    relay, pump = connect(port, broker)
    relay.factory = made.factory
    OPEN.append((broker, relay))
    return relay, broker, pump


OPEN = []


def replace():
    Relay.make = test_pb.SimpleFactoryCopy
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
    """Prints one line for each test."""

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
    """Unhandled errors are logged when they are garbage-collected. Only then does trial see them."""
    while OPEN:
        broker, relay = OPEN.pop()
        relay.close()
        if not broker.disconnected:
            broker.connectionLost(failure.Failure(test_pb.main.CONNECTION_DONE))
    gc.collect()


main()
