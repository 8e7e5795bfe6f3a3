"""Logs in by password, key and token, in the clear on one machine and over TLS, from Twisted 26.10."""
from common import HOST, UsernamePassword, defer, main, pb, trap
from twisted.conch.ssh import keys
from twisted.internet import ssl

REFUSED = ("twisted.cred.error.UnauthorizedLogin",)


def over_tls(reactor, port, ca, factory):
    with open(ca) as file:
        authority = ssl.Certificate.loadPEM(file.read())
    reactor.connectSSL(HOST, int(port), factory, ssl.optionsForClientTLS("localhost", trustRoot=authority))


async def by_key(root, name, file, mind=None):
    key = keys.Key.fromFile(file)
    to_sign, challenger = await root.callRemote("loginKey", name, key.public().blob(), mind)
    if key.sshType() == b"ssh-rsa":
        signature = key.sign(to_sign, signatureType=b"rsa-sha2-256")
    else:
        signature = key.sign(to_sign)
    return await challenger.callRemote("respond", signature)


async def ways(root, factory, token, *files):
    # By password.
    todo = await root.callRemote("loginPassword", "alice/todo", "alice-pw")
    await todo.callRemote("add", "by password")
    avatar = await root.callRemote("loginPassword", "alice", "alice-pw")
    assert await avatar.callRemote("keys") == [("todo", "alice")]
    await trap(root.callRemote("loginPassword", "alice/todo", "wrong"), *REFUSED)
    await trap(root.callRemote("loginPassword", "nobody", "alice-pw"), *REFUSED)

    # By token.
    avatar = await root.callRemote("loginToken", token)
    todo = await avatar.callRemote("attach", "todo")
    await todo.callRemote("add", "by token")
    await trap(root.callRemote("loginToken", token[:-1] + "x"), *REFUSED)

    # By keys of all kinds. A key of another identity and a wrong signature are refused.
    for file in files:
        todo = await by_key(root, "alice/todo", file)
        await todo.callRemote("add", "by key")
    await trap(by_key(root, "bob", files[0]), *REFUSED)
    key = keys.Key.fromFile(files[0])
    _, challenger = await root.callRemote("loginKey", "alice", key.public().toString("OPENSSH"))
    await trap(challenger.callRemote("respond", key.sign(b"something else")), *REFUSED)

    # By Twisted's own login.
    todo = await factory.login(UsernamePassword(b"alice/todo", b"alice-pw"))
    return await todo.callRemote("list")


async def logins(reactor, port, tls_port, ca, token, *files):
    plain = pb.PBClientFactory()
    reactor.connectTCP(HOST, int(port), plain)
    listed = await ways(await plain.getRootObject(), plain, token, *files)
    assert len(listed) == 2 + len(files), listed

    factory = pb.PBClientFactory()
    over_tls(reactor, tls_port, ca, factory)
    listed = await ways(await factory.getRootObject(), factory, token, *files)
    assert len(listed) == 2 * (2 + len(files)), listed

    # Twisted does not talk to a host whose certificate it does not trust: the connection above differs only in that.
    strange = pb.PBClientFactory()
    reactor.connectSSL(HOST, int(tls_port), strange, ssl.optionsForClientTLS("localhost"))
    await trap(strange.getRootObject(), "twisted.internet.error.ConnectionDone", "twisted.internet.error.ConnectionLost")
    plain.disconnect()
    factory.disconnect()
    print("all ways lead in")


main(logins)
