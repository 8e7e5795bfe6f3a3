"""Helpers that the programs for Twisted 26.10 share."""
import sys

from twisted.cred.credentials import UsernamePassword
from twisted.internet import defer, task
from twisted.spread import pb

HOST = "127.0.0.1"


class Mind(pb.Referenceable):
    """Receives calls from the service, and records them."""

    def __init__(self):
        self.heard = []
        self.waiting = []

    def remote_ping(self, *arguments, **keywords):
        self.heard.append((arguments, keywords))
        for waiting in self.waiting:
            waiting.callback(None)
        self.waiting = []
        return ["pong", arguments, keywords]

    def remote_raise(self):
        raise ValueError("raised by the client")


def connect(reactor, port):
    factory = pb.PBClientFactory()
    connection = reactor.connectTCP(HOST, port, factory)
    return factory, connection


async def trap(deferred, *classes):
    """Returns the text of the error that a call must fail with. Compares class names, as programs do."""
    try:
        value = await deferred
    except Exception:
        from twisted.python.failure import Failure

        failure = Failure()
        raised = failure.value
        # A RemoteError carries the class name from the other side; a known class arrives as itself.
        name = getattr(raised, "remoteType", None)
        name = name.decode() if isinstance(name, bytes) else name
        name = name or "%s.%s" % (type(raised).__module__, type(raised).__name__)
        assert name in classes, "raised %s (%s), not %s" % (name, raised, classes)
        return str(raised)
    raise AssertionError("no error, but %r" % (value,))


def main(function):
    task.react(lambda reactor: defer.ensureDeferred(function(reactor, *sys.argv[1:])))
