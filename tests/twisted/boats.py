"""A cacheable object of a client, which the service `exchange` follows under the name `race.Boat`."""
from twisted.internet import defer
from twisted.spread import pb


class Boat(pb.Cacheable):
    def __init__(self, knots):
        self.knots, self.observers = knots, []

    def getTypeToCopyFor(self, perspective):
        return b"race.Boat"

    def state(self):
        return {"knots": self.knots}

    def getStateToCacheAndObserveFor(self, perspective, observer):
        self.observers.append(observer)
        return self.state()

    def stoppedObserving(self, perspective, observer):
        self.observers.remove(observer)

    def go(self, knots):
        self.knots = knots
        return defer.gatherResults([each.callRemote("speed", knots) for each in self.observers])
