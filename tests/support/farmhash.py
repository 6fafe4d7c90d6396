"""farmhash's Fingerprint64 from its description, in plain Python: an oracle that shares no code with TensorFlow."""

M = 2**64 - 1
K0, K1, K2 = 0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F


def _at(s: bytes, i: int, n: int = 8) -> int:
    return int.from_bytes(s[i : i + n], "little")


def _turn(x: int, n: int) -> int:
    x &= M
    return ((x >> n) | (x << (64 - n))) & M


def _mix(x: int) -> int:
    x &= M
    return x ^ (x >> 47)


def _two(u: int, v: int, mul: int) -> int:
    a = _mix(((u ^ v) & M) * mul)
    return _mix(((v ^ a) & M) * mul) * mul & M


def _weak(s: bytes, i: int, a: int, b: int) -> tuple[int, int]:
    w, x, y, z = (_at(s, i + 8 * k) for k in range(4))
    a += w
    b = _turn(b + a + z, 21)
    c = a
    a += x + y
    return (a + z) & M, (b + _turn(a, 44) + c) & M


def _short(s: bytes) -> int:
    n = len(s)
    mul = (K2 + n * 2) & M
    if n >= 8:
        a, b = (_at(s, 0) + K2) & M, _at(s, n - 8)
        return _two((_turn(b, 37) * mul + a) & M, (_turn(a, 25) + b) * mul & M, mul)
    if n >= 4:
        return _two((n + (_at(s, 0, 4) << 3)) & M, _at(s, n - 4, 4), mul)
    if n > 0:
        y, z = s[0] + (s[n >> 1] << 8), n + (s[n - 1] << 2)
        return _mix((y * K2 & M) ^ (z * K0 & M)) * K2 & M
    return K2


def _middle(s: bytes) -> int:
    n = len(s)
    mul = (K2 + n * 2) & M
    first = K1 if n <= 32 else K2
    a, b, c, d = _at(s, 0) * first & M, _at(s, 8), _at(s, n - 8) * mul & M, _at(s, n - 16) * K2 & M
    y = (_turn(a + b, 43) + _turn(c, 30) + d) & M
    z = _two(y, (a + _turn(b + K2, 18) + c) & M, mul)
    if n <= 32:
        return z
    e, f = _at(s, 16) * mul & M, _at(s, 24)
    g, h = (y + _at(s, n - 32)) * mul & M, (z + _at(s, n - 24)) * mul & M
    return _two((_turn(e + f, 43) + _turn(g, 30) + h) & M, (e + _turn(f + a, 18) + g) & M, mul)


def fingerprint64(s: bytes) -> int:
    """Unsigned 64 bits."""
    n = len(s)
    if n <= 16:
        return _short(s)
    if n <= 64:
        return _middle(s)
    x, y = 81, (81 * K1 + 113) & M
    z = _mix(y * K2 + 113) * K2 & M
    v, w = (0, 0), (0, 0)
    x = (x * K2 + _at(s, 0)) & M
    end = (n - 1) // 64 * 64
    for i in range(0, end, 64):
        x = _turn(x + y + v[0] + _at(s, i + 8), 37) * K1 & M
        y = _turn(y + v[1] + _at(s, i + 48), 42) * K1 & M
        x ^= w[1]
        y = (y + v[0] + _at(s, i + 40)) & M
        z = _turn(z + w[0], 33) * K1 & M
        v, w = _weak(s, i, v[1] * K1 & M, x + w[0]), _weak(s, i + 32, z + w[1], y + _at(s, i + 16))
        z, x = x, z
    mul, i = (K1 + ((z & 0xFF) << 1)) & M, n - 64
    w = ((w[0] + ((n - 1) & 63)) & M, w[1])
    v = ((v[0] + w[0]) & M, v[1])
    w = ((w[0] + v[0]) & M, w[1])
    x = _turn(x + y + v[0] + _at(s, i + 8), 37) * mul & M
    y = _turn(y + v[1] + _at(s, i + 48), 42) * mul & M
    x ^= w[1] * 9 & M
    y = (y + v[0] * 9 + _at(s, i + 40)) & M
    z = _turn(z + w[0], 33) * mul & M
    v, w = _weak(s, i, v[1] * mul & M, x + w[0]), _weak(s, i + 32, z + w[1], y + _at(s, i + 16))
    z, x = x, z
    return _two((_two(v[0], w[0], mul) + _mix(y) * K0 + z) & M, (_two(v[1], w[1], mul) + x) & M, mul)


def total(parts: list[bytes]) -> int:
    """The sum of the fingerprints modulo 2^64, as an int64."""
    unsigned = sum(fingerprint64(p) for p in parts) & M
    return unsigned - 2**64 if unsigned >= 2**63 else unsigned
