"""Many SSH sessions, on Twisted's conch. Types each line of standard input in all of them. Reports when all have answered."""

import sys

from twisted.conch.ssh import channel, connection, keys, transport, userauth
from twisted.internet import defer, endpoints, protocol, reactor, stdio
from twisted.protocols import basic

port, name, file, count = int(sys.argv[1]), sys.argv[2].encode(), sys.argv[3], int(sys.argv[4])
key = keys.Key.fromFile(file)
sessions, lost = [], 0


class Transport(transport.SSHClientTransport):
    def verifyHostKey(self, host, fingerprint):
        return defer.succeed(True)

    def connectionSecure(self):
        self.requestService(Login(name, Connection()))

    def connectionLost(self, reason):
        global lost
        lost += 1
        super().connectionLost(reason)


class Login(userauth.SSHUserAuthClient):
    preferredOrder = [b"publickey"]

    def getPublicKey(self):
        return None if self.lastAuth == b"publickey" and self.tried else self.first()

    tried = False

    def first(self):
        self.tried = True
        return key.public()

    def getPrivateKey(self):
        return defer.succeed(key)


class Connection(connection.SSHConnection):
    def serviceStarted(self):
        self.openChannel(Session(conn=self))


class Session(channel.SSHChannel):
    name, answers = b"session", 0

    def channelOpen(self, data):
        self.conn.sendRequest(self, b"shell", b"", wantReply=True).addCallback(self.begun)

    def begun(self, _):
        sessions.append(self)
        if len(sessions) < count:
            come()
        else:
            print("ready", flush=True)

    def dataReceived(self, data):
        self.answers += data.count(b"\n")
        if all(session.answers >= typed for session in sessions):
            print("all", len(sessions), "lost", lost, flush=True)


typed = 0


class Typed(basic.LineReceiver):
    delimiter = b"\n"

    def lineReceived(self, line):
        global typed
        typed += 1
        for session in sessions:
            session.write(line + b"\n")

    def connectionLost(self, reason):
        if reactor.running:
            reactor.stop()


def come():
    """Opens the next session. Opening several at once would not be faster: each would wait for the others' keys."""
    endpoints.TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(protocol.Factory.forProtocol(Transport))


stdio.StandardIO(Typed())
come()
reactor.run()
