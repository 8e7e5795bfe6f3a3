"""A copy of a cached object receives no further updates once the key that the client got it by is removed."""
import subprocess

from common import UsernamePassword, connect, main, pb, trap


class Board(pb.RemoteCache):
    def observe_moved(self, text):
        self.moves.append(text)


pb.setUnjellyableForClass("golden.Board", Board)


async def revoked_copy(reactor, port, credhost, home):
    factory, connector = connect(reactor, int(port))
    avatar = await factory.login(UsernamePassword(b"alice", b"alice-pw"))
    mine = await avatar.callRemote("attach", "my service", "alice")
    other = await avatar.callRemote("attach", "my service", "other")
    board, theirs = await mine.callRemote("board"), await other.callRemote("board")
    factory_of_bob, connector_of_bob = connect(reactor, int(port))
    bob = await factory_of_bob.login(UsernamePassword(b"bob/my service/alice", b"bob-pw"))
    bobs = await bob.callRemote("board")
    await bob.callRemote("play", "before")
    assert await mine.callRemote("sameboard", board)
    assert board.moves == ["before"], board.moves

    command = [credhost, "--home", home, "key", "remove", "alice", "my service", "alice"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    await bob.callRemote("play", "after")
    await other.callRemote("play", "another's")
    assert bobs.moves == ["before", "after"], bobs.moves
    assert theirs.moves == ["another's"], "what came by a key that is there goes on: %r" % (theirs.moves,)
    assert board.moves == ["before"], "what came by one that is not does not: %r" % (board.moves,)
    # It is not usable through another perspective either.
    await trap(other.callRemote("sameboard", board), "twisted.spread.pb.DeadReferenceError")
    connector.disconnect()
    connector_of_bob.disconnect()


main(revoked_copy)
