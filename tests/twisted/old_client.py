"""The client of 2005: Twisted 2.1.0 on Python 2.7, unmodified. It gets a perspective in every way that it has."""
import sys

from twisted.cred import error
from twisted.internet import reactor
from twisted.spread import pb
from twisted.spread.util import CallbackPageCollector  # it is there in 2.1.0, too

HOST, PORT = "127.0.0.1", int(sys.argv[1])
problems = []
steps = []


class Mind(pb.Referenceable):
    def remote_ping(self, *arguments, **keywords):
        return ["pong", arguments, keywords]

    def remote_raise(self):
        raise ValueError("raised by the client")


class Note(pb.RemoteCopy):
    pass


class Board(pb.RemoteCache):
    def observe_moved(self, text):
        self.moves.append(text)


pb.setCopierForClass("golden.Note", Note)
pb.setCopierForClass("golden.Board", Board)
mind = Mind()


def step(function):
    steps.append(function)
    return function


def run():
    if not steps:
        return reactor.stop()
    function = steps.pop(0)
    try:
        deferred = function()
    except:
        import traceback
        problems.append("%s: %s" % (function.__name__, traceback.format_exc()))
        return run()
    deferred.addErrback(lambda failure: problems.append("%s: %s" % (function.__name__, failure)))
    deferred.addCallback(lambda _: run())


def equal(expected):
    def check(value):
        if value != expected or type(value) is not type(expected):
            problems.append("%r is not %r" % (value, expected))
        return value
    return check


def fails(deferred, *classes):
    def worked(value):
        problems.append("no error, but %r" % (value,))

    def failed(failure):
        # Compares names: on Python 2.7, whose exceptions are new-style classes, Twisted 2.1.0 does not trap a class itself.
        if not isinstance(failure.value, classes):
            failure.trap(*["%s.%s" % (each.__module__, each.__name__) for each in classes])
        return str(failure.value)
    return deferred.addCallbacks(worked, failed)


def connected(perspective):
    global mine
    mine = perspective


@step
def connect():
    return pb.connect(HOST, PORT, "alice", "alice-pw", "my service", "alice", mind, 30).addCallback(connected)


for value in [None, True, False, 0, 7, -7, 2**31, -(2**40), 2**63, 2**100, 1.5, "bytes", u"\xe9", [1, [2]], (1, (2,)), {"k": 1}, "remote", {"remote": 5}]:
    def echo(value=value):
        # Python 2 decodes every LONGINT as a `long`.
        check = equal(value)
        if isinstance(value, (int, long)) and not isinstance(value, bool):
            check = lambda answer: answer == value or problems.append("%r is not %r" % (answer, value))
        return mine.callRemote("echo", value).addCallback(check)
    step(echo)


@step
def arguments():
    return mine.callRemote("add", 2, b=5).addCallback(equal(7)).addCallback(lambda _: mine.callRemote("add", 2)).addCallback(equal(3))


@step
def shared():
    one = [1]
    def check(answer):
        if answer[0] is not answer[1]:
            problems.append("not shared: %r" % (answer,))
    return mine.callRemote("echo", [one, one]).addCallback(check)


@step
def shared_twice():
    # Shared objects are numbered from 1 in the arguments, and from 1 again in the keyword arguments.
    one, two = [1], [2]
    def check(answer):
        if answer != ([[1], [1]], [[2], [2]]) or answer[0][0] is not answer[0][1] or answer[1][0] is not answer[1][1]:
            problems.append("%r" % (answer,))
    return mine.callRemote("both", [one, one], other=[two, two]).addCallback(check)


@step
def cached():
    boards = []
    def played(_):
        # As many moves as others have made before, and this one, told before the answer came.
        if boards[0].moves[-1] != u"d4":
            problems.append("%r" % (boards[0].moves,))
        return mine.callRemote("sameboard", boards[0]).addCallback(equal(True))
    deferred = mine.callRemote("board").addCallback(boards.append)
    return deferred.addCallback(lambda _: mine.callRemote("play", "d4")).addCallback(played)


@step
def copyable():
    def check(note):
        if not isinstance(note, Note) or note.text != u"hi":
            problems.append("%r" % (note,))
    return mine.callRemote("note").addCallback(check)


@step
def called_back():
    return mine.callRemote("callmind", "hi").addCallback(equal(["pong", ("hi",), {}]))


@step
def reference():
    return mine.callRemote("callme", mind).addCallback(equal(["pong", (1,), {u"k": u"v"}]))


@step
def own_object():
    def check(thing):
        return mine.callRemote("samething", thing).addCallback(equal(True)).addCallback(lambda _: thing.callRemote("touch"))
    return mine.callRemote("thing").addCallback(check).addCallback(equal(1))


@step
def deferred():
    return mine.callRemote("defer").addCallback(equal(u"later"))


@step
def value_error():
    return fails(mine.callRemote("fail"), ValueError)


@step
def pb_error():
    return fails(mine.callRemote("pberror"), pb.Error)


@step
def key_error():
    return fails(mine.callRemote("deferfail"), KeyError)


@step
def no_such_method():
    return fails(mine.callRemote("nosuch"), AttributeError)


@step
def no_key():
    deferred = pb.connect(HOST, PORT, "alice", "alice-pw", "my service", "bob", None, 30)
    return fails(deferred, error.KeyNotFound).addCallback(
        lambda text: text == "No key for service \"'my service'\", perspective \"'bob'\"." or problems.append(text))


@step
def wrong_password():
    # `respond` returns None, and `pb.connect` then calls a method of it.
    return fails(pb.connect(HOST, PORT, "alice", "wrong", "my service", "alice", None, 30), AttributeError)


@step
def unknown_name():
    # Unlike the original's server, the host returns a challenge that no response matches.
    return fails(pb.connect(HOST, PORT, "mallory", "x", "my service", "mallory", None, 30), AttributeError)


@step
def get_perspective():
    factory = pb.PBClientFactory()
    deferred = factory.getPerspective("alice", "alice-pw", "another service", "alice", mind)
    reactor.connectTCP(HOST, PORT, factory)
    return deferred.addCallback(lambda clock: clock.callRemote("now")).addCallback(equal(12345)).addCallback(lambda _: factory.disconnect())


@step
def identity_connector():
    connector = pb.IdentityConnector(HOST, PORT, "alice", "alice-pw")
    deferred = connector.requestService("another service", "alice", mind)
    deferred.addCallback(lambda clock: clock.callRemote("now")).addCallback(equal(12345))
    deferred.addCallback(lambda _: connector.requestService("my service", "alice", mind))
    deferred.addCallback(lambda mine: mine.callRemote("add", 1)).addCallback(equal(2))
    return deferred.addCallback(lambda _: connector.disconnect())


@step
def new_login_of_2005():
    from twisted.cred.credentials import UsernamePassword
    factory = pb.PBClientFactory()
    deferred = factory.login(UsernamePassword("alice/another service", "alice-pw"), mind)
    reactor.connectTCP(HOST, PORT, factory)
    return deferred.addCallback(lambda clock: clock.callRemote("now")).addCallback(equal(12345)).addCallback(lambda _: factory.disconnect())


reactor.callLater(0, run)
reactor.callLater(50, lambda: (problems.append("it hangs; still to do: %r" % (steps,)), reactor.stop()))
reactor.run()
if problems:
    sys.exit("\n".join(problems))
print("all done")
