"""A chat client over Perspective Broker. It sends its standard input, prints what it receives, and ends with the connection."""
import sys

from common import UsernamePassword, connect, defer, main, pb
from twisted.internet import stdio
from twisted.protocols.basic import LineReceiver


class Ear(pb.Referenceable):
    def remote_heard(self, who, text):
        print("heard", who, text, flush=True)

    def remote_came(self, who):
        print("came", who, flush=True)

    def remote_went(self, who):
        print("went", who, flush=True)


class Mouth(LineReceiver):
    delimiter = b"\n"

    def __init__(self, room):
        self.room = room

    def lineReceived(self, line):
        method, _, text = line.decode().partition(" ")
        said = self.room.callRemote(method, text)
        said.addCallbacks(lambda answer: print("answered", answer, flush=True), lambda failure: print("refused", failure.value, flush=True))


async def window(reactor, port, name, password):
    factory, _ = connect(reactor, int(port))
    room = await factory.login(UsernamePassword(f"{name}/chat".encode(), password.encode()), Ear())
    lost = defer.Deferred()
    room.notifyOnDisconnect(lambda _: lost.callback(None))
    print("in the room", flush=True)
    stdio.StandardIO(Mouth(room))
    await lost
    print("lost", flush=True)


main(window)
