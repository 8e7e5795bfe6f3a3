"""Real Twisted 26.10 reaches Perspective Broker at an address that several doors share: by the server name that it requests in
TLS, or by the protocol that it offers. Prints the number of bob's tasks afterwards.

    by_name.py HOST PORT AUTHORITY PASSWORD NAME [PROTOCOL]
"""
from common import UsernamePassword, main, pb
from twisted.internet import ssl
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS


async def by_name(reactor, host, port, authority, password, name, *protocols):
    with open(authority, "rb") as file:
        trust = ssl.trustRootFromCertificates([ssl.Certificate.loadPEM(file.read())])
    offered = [protocol.encode() for protocol in protocols] or None
    options = ssl.optionsForClientTLS(name, trustRoot=trust, acceptableProtocols=offered)
    factory = pb.PBClientFactory()
    await wrapClientTLS(options, HostnameEndpoint(reactor, host, int(port))).connect(factory)
    todo = await factory.login(UsernamePassword(b"bob/todo", password.encode()))
    await todo.callRemote("add", "by " + name)
    print(len(await todo.callRemote("list")))
    factory.disconnect()


main(by_name)
