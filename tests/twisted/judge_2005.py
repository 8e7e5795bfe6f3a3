"""Tests of Twisted 2.1.0, of 2005, of Perspective Broker, turned on a host: see `judge.py`, which is for today's.

    judge_2005.py PORT

Its runner does not run on Python 2.7: each test is a method, which is called.
"""
import gc
import json
import os
import shutil
import sys
import tempfile
import traceback
from StringIO import StringIO

from twisted.python import log
from twisted.spread import pb
from twisted.test import test_pb

import relay

PORT = int(sys.argv[1])
OPEN = []


def connectedServerAndClient():
    broker = pb.Broker()
    served, pump = relay.connect(PORT, broker)
    OPEN.append(served)
    return broker, served, pump


# Tests that cannot apply, each with its reason.
NOT = {
    "NewStyleTestCase.testNewStyle": "waits for its reactor inside of a method, by Twisted's own runner",
    "BrokerTestCase.testViewPoint": "what Twisted 2.1.0 wraps it in does not run on Python 2.7",
    "NewStyleTestCase.testAlloc": "counts the Python objects that its server makes",
}


def replace():
    relay.Relay.make = test_pb.SimpleFactoryCopy
    test_pb.connectedServerAndClient = connectedServerAndClient
    test_pb.Observable, test_pb.DeferredRemote = relay.Observable, relay.DeferredRemote
    test_pb.NestedComplicatedCache = relay.NestedComplicatedCache
    test_pb.Pagerizer = test_pb.FilePagerizer = relay.Pages
    # The service's classes have the names that today's tests give them.
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
        getattr(case, name)()
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
    # Tests write files where they run.
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    try:
        everything()
    finally:
        shutil.rmtree(folder)


def everything():
    for kind in (test_pb.BrokerTestCase, test_pb.PagingTestCase, test_pb.NewStyleTestCase):
        for name in sorted(name for name in dir(kind) if name.startswith("test")):
            run(kind, name)


main()
