"""Verifies an assertion by PyJWT, with the keys that the host publishes; prints who it is about."""

import json
import sys

import jwt

keys, said, audience = sys.argv[1:]
key = jwt.PyJWKSet.from_dict(json.loads(keys))[jwt.get_unverified_header(said)["kid"]]
claims = jwt.decode(said, key, algorithms=["EdDSA"], audience=audience)
print(claims["sub"], claims["perspective"], claims["iss"])
# For another site, or changed on the way.
for other, of in ((said, "another"), (said[:-4] + "AAAA", audience)):
    try:
        jwt.decode(other, key, algorithms=["EdDSA"], audience=of)
    except jwt.InvalidTokenError:
        continue
    raise SystemExit("it was taken")
