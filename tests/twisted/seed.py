"""The example from Twisted.Cred's documentation, on Twisted 26.10: two services on one port, one authorizer."""
import datetime
import decimal
import gc

from common import Mind, UsernamePassword, connect, defer, main, pb, trap


class Note(pb.RemoteCopy):
    pass


class Board(pb.RemoteCache):
    def observe_moved(self, text):
        self.moves.append(text)
        if self.heard is not None:
            heard, self.heard = self.heard, None
            heard.callback(None)

    heard = None

    def next(self):
        self.heard = defer.Deferred()
        return self.heard


pb.setUnjellyableForClass("golden.Note", Note)
pb.setUnjellyableForClass("golden.Board", Board)

VALUES = [
    None, True, False, 0, 1, -1, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63, -(2**64), 2**447, -(2**448) + 1,
    0.0, -1.5, 1e300, float("inf"), "", "text", "h\u00e9llo \U0001f600", b"", b"bytes", b"\x00\xff", "remote", b"remote", b"list",
    [], [1, [2, [3]]], (), (1,), (1, (2, "x")), {}, {"a": 1, b"b": 2, 3: [4]}, {"remote": 5, "local": 6},
    {(1, 2): 3}, {1, 2, 3}, frozenset([1, "a"]), datetime.datetime(2020, 1, 2, 3, 4, 5, 6), datetime.date(1, 1, 1),
    datetime.time(23, 59, 59, 999999), datetime.timedelta(-1, 5, 7), decimal.Decimal("-1.25"),
]


async def seed(reactor, port):
    factory, connection = connect(reactor, int(port))

    # Both services on one connection.
    mind = Mind()
    mine = await factory.login(UsernamePassword(b"alice/my service", b"alice-pw"), mind)
    avatar = await factory.login(UsernamePassword(b"alice", b"alice-pw"))
    keys = await avatar.callRemote("keys")
    assert sorted(keys) == [("another service", "alice"), ("my service", "alice")], keys
    another = await avatar.callRemote("attach", "another service")
    assert await another.callRemote("now") == 12345
    by_name = await avatar.callRemote("attach", "my service", "alice", mind)
    assert await by_name.callRemote("whoami") == ("alice", "alice")

    # Every kind of value.
    for value in VALUES:
        answer = await mine.callRemote("echo", value)
        assert answer == value and type(answer) is type(value), (value, answer)
    shared = [1]
    answer = await mine.callRemote("echo", [shared, shared])
    assert answer[0] is answer[1], answer
    # Twisted numbers shared objects from 1 in the arguments, and from 1 again in the keyword arguments.
    answer = await mine.callRemote("both", [shared, shared], other=[[2], shared, shared])
    assert answer == ([[1], [1]], [[2], [1], [1]]), answer
    assert answer[0][0] is answer[0][1] and answer[1][1] is answer[1][2], answer
    cycle = [1]
    cycle.append(cycle)
    answer = await mine.callRemote("echo", cycle)
    assert answer[1] is answer, answer
    types = await mine.callRemote("types")
    assert types == {
        "none": None, "yes": True, "int": -7, "big": -10**30, "float": 1.5, "text": "\u00e9", "bytes": b"bytes",
        "list": [1], "tuple": (1, 2), "dictionary": {"k": 1}, "set": {1}, "frozenset": frozenset([2]),
        "datetime": datetime.datetime(2020, 1, 2, 3, 4, 5, 6), "date": datetime.date(2020, 1, 2),
        "time": datetime.time(3, 4, 5, 6), "timedelta": datetime.timedelta(1, 2, 3),
        "decimal": decimal.Decimal("-1.25"),
    }, types
    note = await mine.callRemote("note")
    assert isinstance(note, Note) and note.text == "hi" and note.tags == ["a", "b"], vars(note)
    rows = [{"id": n, "name": "n%d" % n, "score": n / 2} for n in range(1000)]
    assert await mine.callRemote("rows", rows) == rows
    blob = b"x" * 655360
    assert await mine.callRemote("blob", blob) == blob

    # Arguments by position and by name, in texts and bytes, and left out.
    assert await mine.callRemote("add", 2) == 3
    assert await mine.callRemote("add", 2, 5) == 7
    assert await mine.callRemote("add", 2, b=5) == 7
    assert await mine.callRemote("add", b=5, a=2) == 7

    # The service calls the client's mind, and the client's own objects come back as themselves.
    assert await mine.callRemote("callmind", "hi") == ["pong", ("hi",), {}]
    assert await mine.callRemote("callme", mind) == ["pong", (1,), {"k": "v"}]
    assert await mine.callRemote("giveback", mind) is mind
    assert await mine.callRemote("echo", [mind, {"k": mind}]) == [mind, {"k": mind}]
    assert await mine.callRemote("trapme", mind) == "ValueError"
    thing = await mine.callRemote("thing")
    assert await thing.callRemote("touch") == 1
    assert await (await mine.callRemote("thing")).callRemote("touch") == 2
    assert await mine.callRemote("samething", thing) is True
    await trap(another.callRemote("now", thing), "builtins.TypeError", "twisted.spread.jelly.InsecureJelly")

    # A cached object: its state is sent once, all clients that have it receive its changes, and it comes back as the same object.
    board = await mine.callRemote("board")
    assert isinstance(board, Board) and board.moves == [], vars(board)
    other, _ = connect(reactor, int(port))
    perspective = await other.login(UsernamePassword(b"alice/my service", b"alice-pw"))
    theirs = await perspective.callRemote("board")
    heard = theirs.next()
    assert await mine.callRemote("play", "e4") == 1
    assert board.moves == ["e4"], "a change is told before the answer to the call that made it"
    await heard
    assert theirs.moves == ["e4"], theirs.moves
    again = await mine.callRemote("board")
    assert await mine.callRemote("play", "e5") == 2
    assert board.moves == again.moves == ["e4", "e5"], (board.moves, again.moves)
    assert await mine.callRemote("sameboard", board) is True
    await trap(mine.callRemote("samething", board), "builtins.TypeError")
    await trap(another.callRemote("now", board), "builtins.TypeError", "twisted.spread.jelly.InsecureJelly")
    # After the client has dropped it, it is sent again, with its current state.
    del board, again
    gc.collect()
    await mine.callRemote("none")
    assert await mine.callRemote("play", "Nf3") == 3
    assert (await mine.callRemote("board")).moves == ["e4", "e5", "Nf3"]
    other.disconnect()

    # Late answers do not delay others.
    later = mine.callRemote("defer")
    assert await mine.callRemote("add", 1) == 2
    assert not later.called
    assert await later == "later"

    # Errors by class name.
    await trap(mine.callRemote("fail"), "builtins.ValueError")
    await trap(mine.callRemote("pberror"), "twisted.spread.pb.Error")
    await trap(mine.callRemote("deferfail"), "builtins.KeyError")
    message = await trap(mine.callRemote("nosuch"), "builtins.AttributeError")
    assert "nosuch" in message, message
    message = await trap(mine.callRemote("add", "x"), "builtins.TypeError")
    assert "add(a, b): argument a: expected an integer" in message and "'x'" not in message, message
    await trap(mine.callRemote("add"), "builtins.TypeError")
    await trap(mine.callRemote("add", 1, 2, 3), "builtins.TypeError")
    await trap(mine.callRemote("add", 1, c=3), "builtins.TypeError")
    await trap(mine.callRemote("add", 1, a=3), "builtins.TypeError")
    await trap(mine.callRemote("toolarge"), "twisted.spread.pb.Error")
    for panics in "bump_and_panic", "deferpanic":
        await trap(mine.callRemote(panics), "builtins.RuntimeError")

    # If a method panics, its change is undone. Earlier changes are kept.
    assert await mine.callRemote("bump") == 1
    await trap(mine.callRemote("bump_and_panic"), "builtins.RuntimeError")
    assert await mine.callRemote("bump") == 2

    # Refusals.
    await trap(avatar.callRemote("attach", "my service", "bob"), "twisted.cred.error.KeyNotFound")
    await trap(avatar.callRemote("attach", "nothing"), "twisted.python.failure.DefaultException")
    await trap(factory.login(UsernamePassword(b"alice", b"wrong")), "twisted.cred.error.UnauthorizedLogin")
    await trap(factory.login(UsernamePassword(b"mallory", b"x")), "twisted.cred.error.UnauthorizedLogin")
    await trap(factory.login(UsernamePassword(b"alice/my service/bob", b"alice-pw")), "twisted.cred.error.KeyNotFound")
    root = await factory.getRootObject()
    await trap(root.callRemote("loginAnonymous", None), "twisted.cred.error.UnhandledCredentials")
    await trap(root.callRemote("nosuch"), "twisted.spread.flavors.NoSuchMethod")

    # A name may be text as well as bytes.
    texts = await factory.login(UsernamePassword("alice/my service", b"alice-pw"))
    assert await texts.callRemote("bump") == 3
    connection.disconnect()


main(seed)
