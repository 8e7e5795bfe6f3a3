"""Writes user files in the formats of other programs. The libraries that Python programs use make the bcrypt and argon2
hashes. Prints the entries that Twisted reads from its own file."""

import base64
import sys

import bcrypt
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from twisted.cred.checkers import FilePasswordDB

folder = sys.argv[1]


def write(name, *lines):
    with open(f"{folder}/{name}", "w") as out:
        out.writelines(line + "\n" for line in lines)


def bcrypted(name, cost, prefix="$2b$"):
    return bcrypt.hashpw(f"{name}-pw".encode(), bcrypt.gensalt(cost)).decode().replace("$2b$", prefix)


write(
    "htpasswd",
    "# staff",
    "hanna:" + bcrypted("hanna", 5, "$2y$"),
    "april:$apr1$r31.....$HqJZimcKQFAMYayBlzkrA/",
    "des:rqXexS6ZhobKA",
)
write(
    "shadow",
    "root:*:19000:0:99999:7:::",
    "sven:" + bcrypted("sven", 10) + ":19000:0:99999:7:::",
    "yes:$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7:19000:0:99999:7:::",
    "lock:!" + bcrypted("lock", 5) + ":19000:0:99999:7:::",
)
argon2 = Argon2id(salt=b"saltsaltsaltsalt", length=32, iterations=3, lanes=4, memory_cost=65536)
lena = "userPassword: {ARGON2}" + argon2.derive_phc_encoded(b"lena-pw")
write(
    "people.ldif",
    "version: 1",
    "",
    "dn: dc=example,dc=org",
    "objectClass: organization",
    "",
    "dn: uid=lena,dc=example,dc=org",
    "objectClass: top",
    "objectClass: inetOrgPerson",
    "uid: lena",
    "cn: Lena",
    lena[:76],
    " " + lena[76:],
    "",
    "dn: uid=ludwig,dc=example,dc=org",
    "objectClass: inetOrgPerson",
    "uid: ludwig",
    "userPassword:: " + base64.b64encode(("{BCRYPT}" + bcrypted("ludwig", 8)).encode()).decode(),
    "",
    "dn: uid=sally,dc=example,dc=org",
    "objectClass: inetOrgPerson",
    "uid: sally",
    "userPassword: {SSHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=",
)
write("passwords.txt", "tina:tina-pw", "tom:tom-pw:and more")
for name, password in FilePasswordDB(f"{folder}/passwords.txt")._loadCredentials():
    print(name.decode(), password.decode())
