"""Real Twisted 26.10 exchanges objects with a service: pages, faults with fields, caches of its own, views, copyables.

    objects.py PORT ANONYMOUS TRACES       three doors of hosts that have the service `exchange`
"""
from boats import Boat
from common import connect, main

from twisted.cred.credentials import Anonymous, UsernamePassword
from twisted.internet import defer
from twisted.spread import pb, util

MANY = 4 << 20


class Card(pb.Copyable, pb.RemoteCopy):
    pass


class Coupon(pb.Copyable, pb.RemoteCopy):
    pass


for name, kind in (("shop.Card", Card), ("shop.Coupon", Coupon)):
    pb.setUnjellyableForClass(name, kind)


def jellied_as(kind, name):
    """Encodes a class under the name that both sides know."""
    kind.getTypeToCopyFor = lambda self, perspective: name.encode()


jellied_as(Card, "shop.Card")
jellied_as(Coupon, "shop.Coupon")


ShopError = type("Error", (Exception,), {"__module__": "shop"})
OutOfMilk = type("OutOfMilk", (ShopError, KeyError), {"__module__": "shop"})


class Mine(pb.Referenceable):
    def __init__(self):
        self.heard = []

    def remote_fail(self):
        raise OutOfMilk("no milk")

    def remote_ring(self, text):
        self.heard.append(text)
        return "rung: " + text

    def remote_send(self, collector, size):
        pager = util.StringPager(collector, b"z" * size, 65536)
        self.pager = pager


def login(reactor, port, name, mind=None):
    factory, connection = connect(reactor, port)
    return factory.login(UsernamePassword(name.encode(), (name + "-pw").encode()), mind), connection


async def caught(deferred):
    """Returns the failure of a call that must fail."""
    found = await deferred.addCallbacks(lambda value: value, lambda failure: [failure])
    assert isinstance(found, list) and found, found
    return found[0]


async def pages(desk):
    total, done = 0, defer.Deferred()

    class Collector(pb.Referenceable):
        def remote_gotPage(self, page):
            nonlocal total
            total += len(page)

        def remote_endedPaging(self):
            done.callback(None)

    await desk.callRemote("getPages", Collector(), MANY, 65536)
    await done
    assert total == MANY, total
    # With Twisted's own helper.
    got = await util.getAllPages(desk, "getPages", 100_000, 8192)
    assert b"".join(got) == b"z" * 100_000 and len(got) == 13, len(got)
    # In the other direction.
    assert await desk.callRemote("collect", Mine(), 5_000_000) == (5_000_000, True)


async def faults(desk):
    try:
        await desk.callRemote("full", 3)
    except pb.RemoteError as error:
        assert error.remoteType == b"shop.Full" and error.args == ("only 3 are left",), error
    failure = await caught(desk.callRemote("full", 3))
    assert failure.left == 3, vars(failure)
    assert failure.check("shop.Full") and failure.check("shop.Error") and failure.check(LookupError)
    assert not failure.check(pb.Error)
    assert failure.traceback == "Traceback unavailable\n", failure.traceback
    for kind in (ZeroDivisionError, FileNotFoundError, StopIteration, UnicodeDecodeError, BrokenPipeError, KeyError):
        failure = await caught(desk.callRemote("builtin", kind.__name__))
        # Of `BaseException`, Twisted asks by its class alone.
        for parent in kind.__mro__[:-2]:
            assert failure.check(parent), (kind, parent, failure.parents)
    # A client's own error keeps its base classes on the way to the service and through it.
    seen = await desk.callRemote("raised", Mine())
    assert seen[:3] == ("shop.OutOfMilk", True, True), seen
    failure = await caught(desk.callRemote("relay", Mine()))
    assert failure.check("shop.OutOfMilk") and failure.check("shop.Error") and failure.check(LookupError), failure.parents


async def caches(desk):
    boat, slow = Boat(5.0), Boat(1.0)
    assert await desk.callRemote("enter", boat) == 1
    assert await desk.callRemote("enter", slow) == 2
    assert await desk.callRemote("enter", boat) == 2, "it is the same"
    assert await desk.callRemote("fastest") == 5.0
    await slow.go(9.5)
    assert await desk.callRemote("fastest") == 9.5
    assert await desk.callRemote("home") is boat
    assert len(boat.observers) == 1
    await desk.callRemote("forget")
    # After one more call, both sides have processed `decache` and `uncache`.
    await desk.callRemote("fastest")
    assert not boat.observers and not slow.observers
    assert not desk.broker.remotelyCachedObjects, desk.broker.remotelyCachedObjects


async def copies(desk):
    card = Card()
    card.owner, card.points = "alice", 3
    stamped = await desk.callRemote("stamp", card)
    assert isinstance(stamped, Card) and (stamped.owner, stamped.points) == ("alice", 4)
    shown = await desk.callRemote("show", card)
    assert isinstance(shown, Card) and shown.points == 4
    coupon = Coupon()
    coupon.percent = 10
    shown = await desk.callRemote("show", coupon)
    assert isinstance(shown, Coupon) and shown.percent == 11
    shown = await desk.callRemote("present", card)
    assert isinstance(shown, Card) and shown.points == 5
    shown = await desk.callRemote("present", coupon)
    assert isinstance(shown, Coupon) and shown.percent == 12
    for value, kind in ((None, "none"), (5, "int 5"), ("x", "text x"), ([1, 2], "list of 2"), (card, "a shop.Card")):
        assert await desk.callRemote("kind", value) == kind


async def references(reactor, desk, port):
    counter = await desk.callRemote("counter")
    assert await counter.callRemote("count") == ("alice", 1)
    assert await desk.callRemote("counter") == counter, "one reference for one client"
    failure = await caught(counter.callRemote("nosuch"))
    assert failure.check(pb.NoSuchMethod) and failure.check(AttributeError)
    failure = await caught(desk.callRemote("nosuch"))
    assert failure.check(AttributeError) and not failure.check(pb.NoSuchMethod)
    again = await desk.callRemote("any", False)
    assert await (await again.callRemote("any", True)).callRemote("count") == ("alice", 1)
    # Two identities on one connection: each has a reference of its own to one object.
    shared, _ = connect(reactor, port)
    bob = await shared.login(UsernamePassword(b"bob", b"bob-pw"))
    also_alice = await shared.login(UsernamePassword(b"alice", b"alice-pw"))
    assert bob.broker is also_alice.broker
    theirs = await bob.callRemote("counter")
    hers = await also_alice.callRemote("counter")
    assert await theirs.callRemote("count") == ("bob", 1)
    assert await hers.callRemote("count") == ("alice", 2)
    assert await counter.callRemote("count") == ("alice", 3)
    # Bob calls an object that alice has left.
    mine = Mine()
    await desk.callRemote("leave", "bell", mine)
    assert await bob.callRemote("ring", "bell", "hello") == "rung: hello" and mine.heard == ["hello"]
    # The service notices when the client of a watched object disconnects.
    await bob.callRemote("watch", "bob's", Mine())
    bob.broker.transport.loseConnection()
    while "bob's" not in await desk.callRemote("gone"):
        pass


async def let_go(reactor, desk, port):
    """Calls made before a reference is dropped are answered, however many calls are waiting."""
    thing = await desk.callRemote("any", True)
    calls = [thing.callRemote("count") for _ in range(3000)]
    del thing
    answers = await defer.gatherResults(calls)
    assert answers[-1][0] == "alice" and len(answers) == 3000
    deferred, connection = login(reactor, port, "bob")
    theirs = await deferred
    calls = [theirs.callRemote("kind", number) for number in range(3000)]
    del theirs, deferred
    answers = await defer.gatherResults(calls)
    assert answers[-1] == "int 2999"
    connection.disconnect()


class Mirror(pb.Referenceable):
    def remote_take(self, *arguments):
        return {"took": [self, Fresh(), arguments]}


class Fresh(pb.Referenceable):
    pass


async def carried(desk):
    """Objects inside untyped values come home as what they are, also by an object's answer and after a while."""
    mirror, fresh = Mirror(), Fresh()
    for _ in range(3):
        took = (await desk.callRemote("pass_on", mirror, [fresh, {"again": fresh}]))["took"]
        assert took[0] is mirror and isinstance(took[1], Fresh) and took[1] is not fresh
        assert took[2] == ([fresh, {"again": fresh}],), took
        later = await desk.callRemote("later", [mirror, (fresh, mirror)])
        assert later == [mirror, (fresh, mirror)], later
    three = await defer.gatherResults([desk.callRemote("pass_on", mirror, mirror) for _ in range(3)])
    assert [answer["took"][2] for answer in three] == [(mirror,)] * 3, three


async def arguments(desk):
    assert await desk.callRemote("all", 1, 2, "three", x=1, y=2) == [1, [2, "three"], ["x", "y"]]
    assert await desk.callRemote("all", 1) == [1, [], []]
    assert await desk.callRemote("words", type="t", ref=b"r") == ("t", b"r")


async def anonymous(reactor, port):
    factory, connection = connect(reactor, port)
    desk = await factory.login(Anonymous(), "a mind that is a text")
    assert await desk.callRemote("kind", 5) == "int 5"
    root = await factory.getRootObject()
    assert await root.callRemote("kind", 6) == "int 6"
    failure = await caught(root.callRemote("nosuch"))
    assert failure.check(pb.NoSuchMethod)
    failure = await caught(factory.login(UsernamePassword(b"alice", b"wrong")))
    assert failure.check("twisted.cred.error.UnauthorizedLogin")
    connection.disconnect()
    factory, connection = connect(reactor, port)
    broker = await factory.getRootObject()
    shop = broker.broker.remoteForName("shop")
    assert await shop.callRemote("kind", 7) == "int 7"
    failure = await caught(broker.broker.remoteForName("nothing").callRemote("x"))
    assert failure.check(pb.Error), failure
    connection.disconnect()


async def names(reactor, port):
    """What is called by a name needs no login: already the first call may be as large as any."""
    large = ["x" * 5000] * 100
    for name, value in (("root", large), ("shop", [[1] * 70, list(range(900))]), ("root", [Fresh() for _ in range(100)])):
        factory, connection = connect(reactor, port)
        broker = (await factory.getRootObject()).broker
        assert await broker.remoteForName(name).callRemote("same", value) == value
        connection.disconnect()
    # A reference by a name is the object that has it, also in the first call.
    for name in ("root", "shop"):
        factory, connection = connect(reactor, port)
        broker = (await factory.getRootObject()).broker
        named = broker.remoteForName(name)
        for _ in range(2):
            one, [other] = await named.callRemote("same", [named, [named]])
            assert one == other and await one.callRemote("kind", 5) == "int 5", (one, other)
        assert await named.callRemote("same", broker.remoteForName("nothing")) is None
        connection.disconnect()


async def traces(reactor, port):
    desk, connection = login(reactor, port, "alice")
    failure = await caught((await desk).callRemote("full", 3))
    assert "lib.rs" in failure.traceback and "shop.Full: only 3 are left" in failure.traceback, failure.traceback
    connection.disconnect()


async def everything(reactor, port, open_port, traces_port):
    deferred, connection = login(reactor, int(port), "alice", {"a": ["mind", 1]})
    desk = await deferred
    await pages(desk)
    await faults(desk)
    await caches(desk)
    await copies(desk)
    await references(reactor, desk, int(port))
    await let_go(reactor, desk, int(port))
    await arguments(desk)
    await carried(desk)
    connection.disconnect()
    await anonymous(reactor, int(open_port))
    await names(reactor, int(open_port))
    await traces(reactor, int(traces_port))
    print("all exchanged")


main(everything)
