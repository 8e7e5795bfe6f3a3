"""The server that benches compare with: the same methods, on Twisted 26.10. Prints its port."""
from twisted.cred import checkers, portal
from twisted.internet import reactor
from twisted.spread import pb
from zope.interface import implementer


class Perspective(pb.Avatar):
    def perspective_add(self, a, b=1):
        return a + b

    def perspective_blob(self, value):
        return value

    def perspective_rows(self, value):
        return value

    def logout(self):
        pass


@implementer(portal.IRealm)
class Realm:
    def requestAvatar(self, avatar, mind, *interfaces):
        perspective = Perspective()
        return pb.IPerspective, perspective, perspective.logout


users = checkers.InMemoryUsernamePasswordDatabaseDontUse(alice=b"alice-pw")
port = reactor.listenTCP(0, pb.PBServerFactory(portal.Portal(Realm(), [users])), interface="127.0.0.1")
print(port.getHost().port, flush=True)
reactor.run()
