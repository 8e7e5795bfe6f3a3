"""Values through Twisted's own encoder and decoder, as hexadecimal lines.

`generate SEED COUNT` prints random values. `return FILE` decodes each line of the file, and prints Twisted's encoding of the
value. `bases CLASS...` prints the base classes of each class.
"""
import datetime
import decimal
import random
import sys

from twisted.spread import banana, jelly


class Pipe:
    """A banana that speaks dialect "pb", without a connection."""

    def __init__(self):
        self.banana = banana.Banana()
        self.banana.connectionMade()
        self.banana._selectDialect(b"pb")
        self.banana.transport = self
        self.written = b""
        self.received = []
        self.banana.expressionReceived = self.received.append

    def write(self, data):
        self.written += data

    def encode(self, value):
        self.written = b""
        self.banana.sendEncoded(jelly.jelly(value))
        return self.written

    def decode(self, data):
        self.received[:] = []
        self.banana.dataReceived(data)
        (expression,) = self.received
        return jelly.unjelly(expression)


Pipe.disconnecting = False


def integer(r):
    bits = r.choice([1, 7, 8, 31, 32, 33, 63, 64, 100, 447, 448])
    value = r.getrandbits(bits)
    return -value if r.random() < 0.5 else value


def text(r):
    return "".join(r.choice("abc \u00e9\u4e16\U0001f600\x00\n") for _ in range(r.randrange(12)))


def data(r):
    return r.choice([b"list", b"remote", b"None", b"dictionary", bytes(r.getrandbits(8) for _ in range(r.randrange(20)))])


def leaf(r):
    return r.choice([
        lambda: None, lambda: r.random() < 0.5, lambda: integer(r), lambda: r.uniform(-1e9, 1e9),
        lambda: r.choice([float("inf"), float("-inf"), -0.0, 5e-324]), lambda: text(r), lambda: data(r),
        lambda: datetime.datetime.fromtimestamp(r.randrange(2**31)).replace(microsecond=r.randrange(10**6)),
        lambda: datetime.date.fromordinal(r.randrange(1, 3652059)),
        lambda: datetime.time(r.randrange(24), r.randrange(60), r.randrange(60), r.randrange(10**6)),
        lambda: datetime.timedelta(r.randrange(-10**6, 10**6), r.randrange(86400), r.randrange(10**6)),
        lambda: decimal.Decimal(integer(r)).scaleb(r.randrange(-20, 20), decimal.Context(prec=500)),
    ])()


def key(r):
    return r.choice([lambda: integer(r), lambda: text(r), lambda: data(r), lambda: (integer(r), text(r))])()


def value(r, depth, made):
    if depth == 0 or r.random() < 0.3:
        return leaf(r)
    if made and r.random() < 0.15:
        return r.choice(made)
    kind = r.randrange(6)
    if kind == 0:
        result = []
        made.append(result)
        result.extend(value(r, depth - 1, made) for _ in range(r.randrange(5)))
        return result
    if kind == 1:
        # Python has only one empty tuple object.
        result = tuple(value(r, depth - 1, []) for _ in range(r.randrange(1, 5)))
    elif kind == 2:
        result = {}
        made.append(result)
        for _ in range(r.randrange(5)):
            result[key(r)] = value(r, depth - 1, made)
        return result
    elif kind == 3:
        result = {key(r) for _ in range(r.randrange(4))}
    elif kind == 4:
        result = frozenset(key(r) for _ in range(r.randrange(1, 4)))
    else:
        return leaf(r)
    made.append(result)
    return result


def main():
    pipe = Pipe()
    if sys.argv[1] == "bases":
        from twisted.python.reflect import namedAny
        for name in sys.argv[2:]:
            bases = namedAny(name).__mro__[1:]
            print(" ".join(b.__name__ if b.__module__ == "builtins" else b.__module__ + "." + b.__name__ for b in bases))
    elif sys.argv[1] == "generate":
        r = random.Random(int(sys.argv[2]))
        for _ in range(int(sys.argv[3])):
            print(pipe.encode(value(r, 5, [])).hex())
    else:
        for line in open(sys.argv[2]):
            print(pipe.encode(pipe.decode(bytes.fromhex(line))).hex())


main()
