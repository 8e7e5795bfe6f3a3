"""Random conversations with a host's service and with a server on Twisted itself: their outcomes must be the same.

        conversation.py PORT SEED MESSAGES       compares; prints the number of messages with the host
        conversation.py PORT leak REFERENCES     sends this many references each way, with errors in between; none may be left
"""
import gc
import random
import sys

from common import connect, main

from twisted.internet import defer, reactor
from twisted.python import failure
from twisted.spread import pb

BUILTINS = [ValueError, KeyError, ZeroDivisionError, FileNotFoundError, RuntimeError]


class Card(pb.Copyable, pb.RemoteCopy):
    def getTypeToCopyFor(self, perspective):
        return b"talk.Card"


class Board(pb.Cacheable):
    """The server's board, in Python."""

    def __init__(self):
        self.score, self.observers = 0, []

    def getTypeToCopyFor(self, perspective):
        return b"talk.Board"

    def getStateToCacheAndObserveFor(self, perspective, observer):
        self.observers.append(observer)
        return {"score": self.score}

    def stoppedObserving(self, perspective, observer):
        self.observers.remove(observer)


class BoardCopy(pb.RemoteCache):
    def observe_score(self, score):
        self.score = score


pb.setUnjellyableForClass("talk.Card", Card)
pb.setUnjellyableForClass("talk.Board", BoardCopy)


class Node(pb.Referenceable):
    def __init__(self, name):
        self.called, self.kids = name, []

    def remote_name(self):
        return self.called

    def remote_add(self, kid):
        self.kids.append(kid)
        return len(self.kids)

    def remote_kids(self):
        return list(self.kids)

    def remote_me(self):
        return self

    def remote_clear(self):
        self.kids = []


class Root(pb.Root):
    """The counterpart of the service `talk`, for a server on Twisted itself."""

    def __init__(self):
        self.held, self.playing = [], None

    def remote_echo(self, value):
        return value

    def remote_make(self, name):
        return Node(name)

    def remote_many(self, count):
        return [Node(str(number)) for number in range(count)]

    def remote_same(self, one, other):
        return one is other

    def remote_fail(self, name):
        raise {kind.__name__: kind for kind in BUILTINS}[name]("on purpose")

    def remote_call(self, thing, method, value):
        return thing.callRemote(method, value)

    def remote_show(self, thing, node):
        return thing.callRemote("look", node)

    def remote_keep(self, thing):
        self.held.append(thing)
        return len(self.held)

    def remote_kept(self):
        return list(self.held)

    def remote_forget(self):
        self.held = []

    def remote_take(self, things):
        return len(things)

    def remote_board(self):
        self.playing = self.playing or Board()
        return self.playing

    def remote_score(self, score):
        board = self.remote_board()
        board.score = score
        for observer in list(board.observers):
            observer.callRemote("score", score)

    def remote_scored(self, board):
        return board.score

    def remote_wipe(self):
        self.playing = None


class Mine(pb.Referenceable):
    def __init__(self, talk, number):
        self.talk, self.number = talk, number

    def remote_ping(self, value):
        self.talk.heard("mine %d: ping %s" % (self.number, self.talk.shown(value)))
        return [value, self.number]

    def remote_boom(self, value):
        raise OSError("boom %s" % (value,))

    def remote_look(self, node):
        self.talk.heard("mine %d: look %s" % (self.number, self.talk.shown(node)))
        return node.callRemote("name")


class Talk:
    """One conversation. The seed alone determines the calls."""

    def __init__(self, root, seed):
        self.root, self.random = root, random.Random(seed)
        self.said, self.labels, self.nodes, self.boards = [], [], [], []
        self.mine = [Mine(self, number) for number in range(4)]
        self.messages = 0

    def heard(self, line):
        self.said.append(line)
        self.messages += 2

    def shown(self, value):
        if isinstance(value, pb.RemoteReference):
            if value not in self.labels:
                self.labels.append(value)
            return "reference %d" % self.labels.index(value)
        if isinstance(value, Mine):
            return "mine %d" % value.number
        if isinstance(value, BoardCopy):
            return "board %s" % value.score
        if isinstance(value, Card):
            return "card %s" % self.shown(value.__dict__)
        if isinstance(value, dict):
            return "{%s}" % ", ".join(sorted("%s: %s" % (self.shown(k), self.shown(v)) for k, v in value.items()))
        if isinstance(value, (list, tuple)):
            return "%s[%s]" % (type(value).__name__, ", ".join(map(self.shown, value)))
        return repr(value)

    def value(self, depth=0):
        pick = self.random
        leaf = [None, True, 7, -(2**40), 2**70, 1.5, b"bytes", "te\xe9xt"]
        kind = pick.randrange(12)
        if depth > 2 or kind < 6:
            return pick.choice(leaf)
        if kind == 6:
            return pick.choice(self.mine)
        if kind == 7 and self.nodes:
            return pick.choice(self.nodes)
        if kind == 8:
            card = Card()
            card.owner, card.value = "o", self.value(depth + 1)
            return card
        if kind == 9:
            return {"k%d" % number: self.value(depth + 1) for number in range(pick.randrange(3))}
        if kind == 10:
            return tuple(self.value(depth + 1) for _ in range(pick.randrange(3)))
        one = [self.value(depth + 1) for _ in range(pick.randrange(3))]
        return [one, one] if pick.random() < 0.3 else one

    async def ask(self, target, method, *arguments, **keywords):
        words = ", ".join(map(self.shown, arguments))
        try:
            answer = await target.callRemote(method, *arguments, **keywords)
        except Exception:
            caught = failure.Failure()
            name = getattr(caught.value, "remoteType", None) or caught.type
            name = name.decode() if isinstance(name, bytes) else getattr(name, "__name__", name)
            name = name.rsplit(".", 1)[-1]
            # A missing method of the root: the service's is a perspective.
            answer = None
            self.said.append("%s(%s) fails: %s" % (method, words, name))
        else:
            self.said.append("%s(%s) = %s" % (method, words, self.shown(answer)))
        self.messages += 2
        return answer

    async def step(self):
        pick, root = self.random, self.root
        node = pick.choice(self.nodes) if self.nodes else None
        kind = pick.randrange(20)
        if kind < 4:
            await self.ask(root, "echo", self.value())
        elif kind == 4 or node is None:
            made = await self.ask(root, "make", "n%d" % len(self.said))
            self.nodes.append(made)
        elif kind == 5:
            self.nodes.extend(await self.ask(root, "many", pick.randrange(4)))
        elif kind == 6:
            await self.ask(root, "same", node, pick.choice(self.nodes))
        elif kind == 7:
            await self.ask(root, "fail", pick.choice(BUILTINS).__name__)
        elif kind == 8:
            await self.ask(root, "call", pick.choice(self.mine), pick.choice(["ping", "boom", "none"]), self.value())
        elif kind == 9:
            await self.ask(root, "show", pick.choice(self.mine), node)
        elif kind == 10:
            await self.ask(root, "keep", pick.choice(self.mine))
        elif kind == 11:
            await self.ask(root, "kept")
        elif kind == 12:
            await self.ask(root, "take", self.mine)
        elif kind == 13:
            await self.ask(node, "add", pick.choice(self.nodes))
        elif kind == 14:
            await self.ask(node, pick.choice(["kids", "me", "name", "clear"]))
        elif kind == 15:
            self.boards = [await self.ask(root, "board")]
        elif kind == 16:
            await self.ask(root, "score", pick.randrange(100))
            self.said.append("boards: %s" % ", ".join(map(self.shown, self.boards)))
        elif kind == 17 and self.boards:
            await self.ask(root, "scored", self.boards[0])
        elif kind == 18:
            await self.ask(node, "nosuch", self.value())
        else:
            # Drops some nodes. The others keep their labels.
            gone = pick.randrange(len(self.nodes))
            self.nodes[gone : gone + 2] = []
        await self.several()

    async def several(self):
        """Now and then, makes several calls at once. Their answers arrive in order."""
        if self.random.random() < 0.05:
            values = [self.value() for _ in range(10)]
            await defer.gatherResults([defer.ensureDeferred(self.ask(self.root, "echo", value)) for value in values])


def until(talk, enough):
    """Makes steps, one after another, until this many messages have been exchanged."""

    async def run():
        # Twisted releases a reference before its answer is sent: an object that nothing else keeps would come back as None.
        for mine in talk.mine:
            await talk.ask(talk.root, "keep", mine)
        while talk.messages < enough:
            await talk.step()
        return talk

    return run()


async def compare(port, seed, enough):
    total = 0
    # Several separate conversations, so that tables are discarded and created.
    while total < enough:
        talks = []
        server = reactor.listenTCP(0, pb.PBServerFactory(Root()), interface="127.0.0.1")
        for of in (server.getHost().port, port):
            factory, connection = connect(reactor, of)
            root = await factory.getRootObject()
            # It begins with a call, so that whoever is asked is there.
            talks.append(await until(Talk(root, seed), min(2000, enough)))
            connection.disconnect()
        await server.stopListening()
        for line, (twisted, ours) in enumerate(zip(talks[0].said, talks[1].said)):
            assert twisted == ours, "seed %s, line %d:\n%s\n%s\nbefore: %s" % (seed, line, twisted, ours, talks[0].said[max(0, line - 5) : line])
        assert len(talks[0].said) == len(talks[1].said)
        total += talks[1].messages
        seed += 1
    return total


class Nothing(pb.Referenceable):
    def remote_look(self, *arguments):
        return None


async def leak(port, enough):
    factory, connection = connect(reactor, port)
    root = await factory.getRootObject()
    await root.callRemote("alive")
    given = taken = 0
    turn = 0

    async def expect(deferred):
        try:
            await deferred
        except Exception:
            return
        raise AssertionError("it should fail")

    while min(given, taken) < enough:
        turn += 1
        things = [Nothing() for _ in range(500)]
        assert await root.callRemote("take", things) == 500
        assert len(await root.callRemote("many", 500)) == 500
        await root.callRemote("echo", things[:100])
        boards = [await root.callRemote("board") for _ in range(3)]
        await root.callRemote("score", turn)
        await root.callRemote("wipe")
        given, taken = given + 600, taken + 500
        # Errors, at each place where an answer or a call can fail.
        await expect(root.callRemote("take", things[:50] + [5]))
        await expect(root.callRemote("take", things[:50], 5))
        await expect(root.callRemote("nosuch", things[:50]))
        await expect(root.callRemote("echo", things[:50], none=things[50:60]))
        await expect(root.callRemote("unsendable", 50))
        assert await root.callRemote("unsendable_call", things[0], 50) != ""
        await expect(root.callRemote("same", things[0], things[1]))
        await expect(root.callRemote("scored", things[0]))
        await expect(root.broker.remoteForName("nothing").callRemote("take", things[:50]))
        root.callRemote("many", 50).addErrback(lambda _: None)
        given, taken = given + 320, taken + 150
        del things, boards
    gc.collect()
    # Releases travel in order with the calls: after two more calls, both sides have received them.
    await root.callRemote("alive")
    alive = await root.callRemote("alive")
    broker = root.broker
    left = [entry for entry in broker.localObjects if entry != b"root"]
    assert not left, "the host still has %d of the client's" % len(left)
    assert not broker.locallyCachedObjects, broker.locallyCachedObjects
    assert alive == 0, "%d of the service's are left" % alive
    connection.disconnect()
    print("%d references given, %d taken, none left on either side" % (given, taken))


async def run(_, port, what, count):
    if what == "leak":
        await leak(int(port), int(count))
    else:
        print("%d messages, the same as with Twisted's own server" % await compare(int(port), int(what), int(count)))


main(run)
