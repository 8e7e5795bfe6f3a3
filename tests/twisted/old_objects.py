"""Twisted 2.1.0 on Python 2.7: values that it cannot read are errors, and its connection stays open."""
import sys

from twisted.internet import reactor
from twisted.spread import pb

problems = []


class Mine(pb.Referenceable):
    def remote_ping(self, *arguments):
        problems.append("it came: %r" % (arguments,))


def told(failure, what):
    if "does not know" not in str(failure.value):
        problems.append("%s: %s" % (what, failure.value))


def worked(answer):
    problems.append("no error, but %r" % (answer,))


def run(desk):
    def ask(kind):
        return lambda _: desk.callRemote("newer", kind).addCallbacks(worked, told, errbackArgs=(kind,))

    def expect(wanted):
        return lambda answer: answer == wanted or problems.append("%r is not %r" % (answer, wanted))

    deferred = ask("set")(None)
    deferred.addCallback(ask("decimal"))
    deferred.addCallback(lambda _: desk.callRemote("newer", "plain")).addCallback(expect(u"plain"))
    deferred.addCallback(lambda _: desk.callRemote("send_newer", Mine())).addCallback(expect(u"TypeError"))
    return deferred


deferred = pb.connect("127.0.0.1", int(sys.argv[1]), "alice", "alice-pw", "exchange", "alice", None, 30)
deferred.addCallback(run)
deferred.addErrback(lambda failure: problems.append(str(failure)))
deferred.addBoth(lambda _: reactor.stop())
reactor.callLater(30, lambda: (problems.append("it hangs"), reactor.stop()))
reactor.run()
if problems:
    sys.exit("\n".join(problems))
print("still here")
