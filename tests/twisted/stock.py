"""One login by Twisted's own means, and one call."""
from common import UsernamePassword, connect, main


async def stock(reactor, port, name, password):
    factory, _ = connect(reactor, int(port))
    todo = await factory.login(UsernamePassword(name.encode() + b"/todo", password.encode()))
    print(await todo.callRemote("list"))


main(stock)
