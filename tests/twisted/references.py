"""References work as in Twisted: an object lives until the client drops its reference, and comes back as the same object."""
import gc

from common import Mind, UsernamePassword, connect, main, pb, trap


class Board(pb.RemoteCache):
    shown = None

    def observe_moved(self, text):
        self.moves.append(text)

    def observe_shown(self, thing):
        self.shown = thing


pb.setUnjellyableForClass("golden.Board", Board)
DEAD = "twisted.spread.pb.DeadReferenceError"
INSECURE = "twisted.spread.jelly.InsecureJelly"


async def references(reactor, port):
    factory, connector = connect(reactor, int(port))
    alice = UsernamePassword(b"alice/my service", b"alice-pw")

    # The usual way: the client does not keep the perspective.
    thing = await factory.login(alice).addCallback(lambda perspective: perspective.callRemote("thing"))
    gc.collect()
    assert await thing.callRemote("touch") == 1
    mine = await factory.login(alice)
    assert await thing.callRemote("touch") == 2, "it lives on, whatever comes after it"

    # The service's own objects come back as themselves, also inside other values. So does the avatar.
    assert await mine.callRemote("samething", await mine.callRemote("thing"))
    inside = await mine.callRemote("echo", {"here": [thing]})
    assert inside["here"][0] == thing, (inside, thing)
    del inside
    gc.collect()
    assert await thing.callRemote("touch") == 3, "counted once more for going out once more"
    assert await mine.callRemote("isme", mine)
    assert (await mine.callRemote("echo", mine)) == mine

    # References to an object are counted separately for each client.
    other_factory, other_connector = connect(reactor, int(port))
    other = await other_factory.login(alice)
    boards = [await mine.callRemote("board"), await other.callRemote("board")]
    await mine.callRemote("show")
    await other.callRemote("none")
    assert boards[0].shown is not None and boards[1].shown is not None
    boards[0].shown = None
    gc.collect()
    await mine.callRemote("none")
    assert await boards[1].shown.callRemote("touch") >= 1, "the other's is its own"

    # A cached object lives while a client has it, even if nothing else does.
    loose = await mine.callRemote("loose")
    assert await mine.callRemote("playon", loose, "e4") == 1
    assert loose.moves == ["e4"], loose.moves

    # A value that a stock client could not read is an error for its sender. No connection ends.
    for value in (int, [int], {"k": (Mind,)}):
        await trap(mine.callRemote("echo", value), INSECURE)
    mind = Mind()
    mind.remote_ping = lambda *arguments, **keywords: int
    await trap(mine.callRemote("callme", mind), INSECURE)
    await mine.callRemote("none")
    await other.callRemote("none")
    connector.disconnect()
    other_connector.disconnect()


main(references)
