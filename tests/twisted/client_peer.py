"""A server on real Twisted 26.10 for the Rust client. It prints its port, and ends when its standard input ends.

        client_peer.py [--login]       with --login, "alice" logs in with "alice-pw" to a `Peer`; without, the root is a `Peer`
"""
import sys

from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import IRealm, Portal
from twisted.internet import defer, reactor, stdio
from twisted.internet.protocol import Protocol
from twisted.spread import pb, util
from zope.interface import implementer


class Card(pb.Copyable):
    def __init__(self, name):
        self.name = name


Card.getTypeToCopyFor = lambda self, perspective: b"shop.Card"


class Scores(pb.Cacheable):
    def __init__(self):
        self.points, self.observers = 0, []

    def getStateToCacheAndObserveFor(self, perspective, observer):
        self.observers.append(observer)
        return {"points": self.points}

    def stoppedObserving(self, perspective, observer):
        self.observers.remove(observer)

    def set(self, points):
        self.points = points
        return defer.gatherResults([each.callRemote("points", points) for each in self.observers])


Scores.getTypeToCopyFor = lambda self, perspective: b"game.Scores"


class Boat(pb.RemoteCache):
    def observe_speed(self, knots):
        self.knots = knots


pb.setUnjellyableForClass("race.Boat", Boat)


def pattern(size):
    """Bytes whose position can be told from their content."""
    whole = b"".join(b"%07d\n" % number for number in range(size // 8 + 1))
    return whole[:size]


class Challenger(pb.Referenceable):
    def remote_respond(self, signature):
        return Thing(signature)


class Thing(pb.Referenceable):
    def __init__(self, name):
        self.name = name

    def remote_name(self):
        return self.name


class Collector(pb.Referenceable):
    def __init__(self):
        self.data, self.pages, self.done = b"", 0, defer.Deferred()

    def remote_gotPage(self, page):
        self.data += page
        self.pages += 1

    def remote_endedPaging(self):
        self.done.callback((len(self.data), self.pages, self.data == pattern(len(self.data))))

    def remote_done(self):
        return self.done


class Busy(pb.Error):
    pass


class Peer(pb.Root, pb.Avatar):
    def __init__(self):
        self.scores, self.thing, self.kept, self.boat, self.mind, self.waiting = Scores(), Thing("one"), [], None, None, []

    def rootObject(self, broker):
        self.broker = broker
        return self

    def logout(self):
        pass

    def __getattr__(self, name):
        # The avatar has the methods of the root.
        if name.startswith("perspective_"):
            return getattr(self, "remote_" + name[len("perspective_"):])
        raise AttributeError(name)

    def remote_echo(self, *args, **kw):
        return [list(args), kw]

    def remote_things(self):
        return {"one": self.thing, "two": Thing("two")}

    def remote_is_mine(self, thing):
        return thing is self.thing

    def remote_ask(self, thing, method, *args, **kw):
        return thing.callRemote(method, *args, **kw)

    def remote_ask_mind(self, method, *args):
        return self.mind.callRemote(method, *args)

    def remote_keep(self, thing):
        self.kept.append(thing)

    def remote_give_back(self):
        return self.kept[-1]

    def remote_drop(self):
        self.kept = []

    def remote_burst(self, thing, count):
        return defer.gatherResults([thing.callRemote("take", number) for number in range(count)])

    def remote_card(self):
        return [Card("ace"), self.thing]

    def remote_scores(self):
        return self.scores

    def remote_set(self, points):
        return self.scores.set(points).addCallback(lambda _: self.scores)

    def remote_many(self, count):
        self.kept = [Scores() for _ in range(count)]
        return self.kept

    def remote_loginKey(self, name, key, mind):
        """Asks for a signature that another host would accept."""
        return b"\0\0\0\x20session of another host\0" + name.encode(), Challenger()

    def remote_loginPassword(self, name, password, mind):
        self.waiting.append(password)
        raise Busy("heard it")

    def remote_is_scores(self, scores):
        return scores is self.scores

    def remote_observers(self):
        return len(self.scores.observers)

    def remote_enter(self, boat):
        self.boat = boat
        return boat.knots

    def remote_knots(self):
        return self.boat.knots

    def remote_read(self, collector, count, size):
        util.StringPager(collector, pattern(count), size)

    def remote_store(self):
        return Collector()

    def remote_never(self):
        self.waiting.append(defer.Deferred())
        return self.waiting[-1]

    def remote_under_way(self):
        return len(self.waiting)

    def remote_answer(self):
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            each.callback(self.thing)

    def remote_fail(self):
        raise Busy("later")

    def remote_held(self):
        """The sizes of this side's tables: this server's objects that the client holds, and cached objects."""
        broker = self.broker
        return [len([luid for luid in broker.localObjects if luid not in ("root", b"root")]), len(broker.remotelyCachedObjects)]

    def remote_hang_up(self):
        reactor.callLater(0, self.broker.transport.loseConnection)


@implementer(IRealm)
class Realm:
    def requestAvatar(self, name, mind, *interfaces):
        peer = Peer()
        peer.mind = mind
        return pb.IPerspective, peer, peer.logout


class Over(Protocol):
    def connectionLost(self, reason):
        reactor.stop()


if "--login" in sys.argv:
    database = InMemoryUsernamePasswordDatabaseDontUse(alice=b"alice-pw")
    factory = pb.PBServerFactory(Portal(Realm(), [database]))
else:
    factory = pb.PBServerFactory(Peer())
port = reactor.listenTCP(0, factory, interface="127.0.0.1")
print(port.getHost().port, flush=True)
stdio.StandardIO(Over())
reactor.run()
