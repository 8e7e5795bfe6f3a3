"""Calls the two services that are linked into examples/embed.rs, from Twisted 26.10."""
from common import UsernamePassword, connect, main


async def embed(reactor, port):
    factory, connection = connect(reactor, int(port))
    greeter = await factory.login(UsernamePassword(b"alice/my service", b"alice-pw"))
    assert await greeter.callRemote("greet", "world") == "Hello, world, for the 1. time"
    avatar = await factory.login(UsernamePassword(b"alice", b"alice-pw"))
    echo = await avatar.callRemote("attach", "another service")
    assert await echo.callRemote("echo", [1, "two"]) == [1, "two"]
    connection.disconnect()


main(embed)
