"""An IRC client on Twisted's own implementation. It joins the room, sends its standard input, and prints what it receives."""

import sys

from twisted.internet import protocol, reactor, stdio
from twisted.protocols import basic
from twisted.words.protocols import irc


class Reader(basic.LineReceiver):
    delimiter = b"\n"

    def __init__(self, client):
        self.client = client

    def lineReceived(self, line):
        self.client.say("#chat", line.decode())

    def connectionLost(self, reason):
        self.client.quit("bye")


class Client(irc.IRCClient):
    nickname, password = sys.argv[2], sys.argv[3]

    def signedOn(self):
        self.join("#chat")

    def joined(self, channel):
        print("joined", channel, flush=True)
        stdio.StandardIO(Reader(self))

    def privmsg(self, user, channel, message):
        print(user.split("!")[0], channel, message, flush=True)

    def connectionLost(self, reason):
        print("lost", flush=True)
        if reactor.running:
            reactor.stop()


class Factory(protocol.ClientFactory):
    protocol = Client


reactor.connectTCP("127.0.0.1", int(sys.argv[1]), Factory())
reactor.run()
