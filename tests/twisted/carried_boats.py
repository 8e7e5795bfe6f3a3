"""A service follows cacheable objects of real Twisted 26.10. After the service is replaced, it still follows them, in their
current state. It stops once it drops them.

    carried_boats.py PORT COMMAND...       a host with `exchange`; the command that replaces it
"""
import subprocess

from boats import Boat
from common import UsernamePassword, connect, main
from twisted.internet.threads import deferToThread


async def carried_boats(reactor, port, *command):
    factory, connection = connect(reactor, int(port))
    keeps = await factory.login(UsernamePassword(b"alice/exchange", b"alice-pw"))
    # The service `exchange` does not follow bob's objects on after a reload.
    lets_go = await factory.login(UsernamePassword(b"bob/exchange", b"bob-pw"))
    boats, other = [Boat(float(knots)) for knots in range(1, 4)], Boat(1.0)
    for boat in boats:
        await keeps.callRemote("enter", boat)
    await lets_go.callRemote("enter", other)
    fastest = 3.0
    for round in range(1, 6):
        # The objects also change while the service is being replaced.
        replaced = deferToThread(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
        done = []
        replaced.addBoth(done.append)
        while not done:
            fastest += 1
            await boats[round % 3].go(fastest)
            await other.go(fastest)
        assert await keeps.callRemote("fastest") == fastest, round
        assert [len(boat.observers) for boat in boats] == [1, 1, 1], "each is followed by the same, and was sent once"
        # The client sends it with its state or without, depending on what it knows by now. It arrives in its current state.
        assert await lets_go.callRemote("enter", other) == 1
        assert await lets_go.callRemote("fastest") == fastest, round
    assert await keeps.callRemote("home") is boats[0]
    for desk in (keeps, lets_go):
        await desk.callRemote("forget")
    while other.observers or any(boat.observers for boat in boats):
        await keeps.callRemote("fastest")
    assert not keeps.broker.remotelyCachedObjects, keeps.broker.remotelyCachedObjects
    print("followed")
    connection.disconnect()


main(carried_boats)
