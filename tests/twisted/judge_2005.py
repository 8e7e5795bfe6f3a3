"""The Perspective Broker tests of Twisted 2.1.0 (2005), run against a host. See `judge.py`, which is for today's Twisted.

    judge_2005.py PORT LOGIN       LOGIN: the port of a host that has the service `test`, and no names

The test runner of Twisted 2.1.0 does not run on Python 2.7. Each test is a method, which this program calls.
"""
import gc
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from StringIO import StringIO

from twisted.internet import defer, reactor
from twisted.python import failure, log
from twisted.spread import pb
from twisted.test import test_pb

import relay

PORT, LOGIN = int(sys.argv[1]), int(sys.argv[2])
OPEN = []


def connectedServerAndClient():
    broker = pb.Broker()
    served, pump = relay.connect(PORT, broker)
    OPEN.append(served)
    return broker, served, pump


# Classes of tests that have a server of their own.
SERVED = (test_pb.ConnectionTestCase, test_pb.NewCredTestCase)
# Tests that cannot apply, each with its reason.
NOT = {
    "NewStyleTestCase.testNewStyle": "waits for its reactor inside of a method, by Twisted's own runner",
    "BrokerTestCase.testViewPoint": "what Twisted 2.1.0 wraps it in does not run on Python 2.7",
    "ConnectionTestCase.testGoodFailedConnect": "no server; and Twisted 2.1.0 cannot trap an exception on Python 2.7",
    "NewStyleTestCase.testAlloc": "counts the Python objects that its server makes",
}


class Perspective:
    """Answers a test's questions to its realm's perspective. It asks the host on another connection."""

    def __init__(self):
        self.watcher, _ = relay.connect(PORT, pb.Broker())
        _, self.gone = self.watcher.ask("root", "judgeInside")

    def inside(self):
        return self.watcher.ask("root", "judgeInside")

    loggedIn = property(lambda self: bool(self.inside()[0]))

    @property
    def loggedOut(self):
        """Polls: the host notices the end of a connection a moment after the client does."""
        end = time.time() + relay.PATIENCE
        while time.time() < end:
            inside, gone = self.inside()
            if gone > self.gone and not inside:
                return True
        return False


def at_the_host(kind, port, before):
    """Makes a class of tests that has a server on a port use the host's port instead."""

    def setUp(self):
        self.portno = port
        before(self)

    def tearDown(self):
        for each in getattr(self, "refs", ()):
            each.broker.transport.loseConnection()

    kind.setUp, kind.tearDown = setUp, tearDown


def realm(test):
    class Realm:
        p = Perspective()

    test.realm = Realm


def waited(result):
    """Runs the reactor until a Deferred has fired. Raises its error, if it has one."""
    if not isinstance(result, defer.Deferred):
        return
    came = []
    result.addBoth(came.append)
    end = time.time() + relay.PATIENCE
    while not came and time.time() < end:
        reactor.iterate(0.01)
    if not came:
        raise AssertionError("nothing has come of it")
    if isinstance(came[0], failure.Failure):
        came[0].raiseException()


def replace():
    at_the_host(test_pb.ConnectionTestCase, LOGIN, lambda test: setattr(test, "refs", []))
    at_the_host(test_pb.NewCredTestCase, PORT, realm)
    relay.Relay.make = test_pb.SimpleFactoryCopy
    test_pb.connectedServerAndClient = connectedServerAndClient
    test_pb.Observable, test_pb.DeferredRemote = relay.Observable, relay.DeferredRemote
    test_pb.NestedComplicatedCache = relay.NestedComplicatedCache
    test_pb.Pagerizer = test_pb.FilePagerizer = relay.Pages
    # The service's classes have the names from today's tests.
    module = "twisted.spread.test.test_pb."
    pb.setCopierForClass(module + "SimpleCopy", test_pb.SimpleLocalCopy)
    pb.setFactoryForClass(module + "SimpleFactoryCopy", test_pb.createFactoryCopy)
    for cached, copy in (
        ("SimpleCache", test_pb.SimpleLocalCache),
        ("VeryVeryComplicatedCacheable", test_pb.RatherBaroqueCache),
        ("DumbPublishable", test_pb.DumbPub),
    ):
        pb.setCopierForClass(module + cached, copy)


def say(name, result, why=None):
    print(json.dumps({"test": name, "result": result, "why": why}))
    sys.stdout.flush()


def run(kind, name):
    whole = "%s.%s" % (kind.__name__, name)
    if whole in NOT:
        return say(whole, "does not apply", NOT[whole])
    case, said = kind(name), StringIO()
    watch = lambda event: event.get("isError") and said.write("%s\n" % (event.get("failure") or event.get("why"),))
    log.addObserver(watch)
    try:
        if hasattr(case, "setUpClass"):
            case.setUpClass()
        if kind in SERVED:
            case.setUp()
        try:
            waited(getattr(case, name)())
        finally:
            if kind in SERVED:
                case.tearDown()
        gc.collect()
        if "Unhandled" in said.getvalue():
            raise AssertionError(said.getvalue())
    except Exception:
        say(whole, "failed", traceback.format_exc())
    else:
        say(whole, "passed")
    finally:
        log.removeObserver(watch)
        while OPEN:
            OPEN.pop().close()
        gc.collect()


def main():
    replace()
    # Tests write files to the working directory.
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    try:
        everything()
    finally:
        shutil.rmtree(folder)


def everything():
    for kind in (test_pb.BrokerTestCase, test_pb.PagingTestCase, test_pb.NewStyleTestCase) + SERVED:
        for name in sorted(name for name in dir(kind) if name.startswith("test")):
            run(kind, name)


main()
