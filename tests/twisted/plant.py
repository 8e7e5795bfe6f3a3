"""Logs in with the right and with a wrong password, by Twisted's own login, and with a password in place of the name."""
from common import UsernamePassword, connect, main, trap

REFUSED = ("twisted.cred.error.UnauthorizedLogin",)


async def plant(reactor, port, name, right, wrong):
    factory, _ = connect(reactor, int(port))
    await factory.login(UsernamePassword(name.encode(), right.encode()))
    await trap(factory.login(UsernamePassword(name.encode(), wrong.encode())), *REFUSED)
    await trap(factory.login(UsernamePassword(right.encode(), wrong.encode())), *REFUSED)
    root = await factory.getRootObject()
    await trap(root.callRemote("loginPassword", right, wrong), *REFUSED)
    await trap(root.callRemote("loginPassword", right, 5), "builtins.TypeError")
    await trap(root.callRemote("loginToken", right), *REFUSED)
    print("planted")


main(plant)
