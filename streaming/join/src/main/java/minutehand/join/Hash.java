package minutehand.join;

import java.nio.charset.StandardCharsets;

/** The numbers that Java and Python both compute (docs/example.md; vectors in tests/vectors/hash.json). */
final class Hash {
    private static final long FNV_BASIS = 0xcbf29ce484222325L;
    private static final long FNV_PRIME = 0x100000001b3L;

    private Hash() {}

    static long fnv1a64(byte[] bytes) {
        return fnv1a64(FNV_BASIS, bytes);
    }

    /** Goes on from `hash`, so that a common beginning is hashed once. */
    static long fnv1a64(long hash, byte[] bytes) {
        for (byte b : bytes) {
            hash = (hash ^ (b & 0xff)) * FNV_PRIME;
        }
        return hash;
    }

    /** splitmix64's finalizer. */
    static long mix64(long x) {
        x = (x ^ (x >>> 30)) * 0xbf58476d1ce4e5b9L;
        x = (x ^ (x >>> 27)) * 0x94d049bb133111ebL;
        return x ^ (x >>> 31);
    }

    /** The hash all draws of one salt begin with. */
    static long saltHash(String salt) {
        return fnv1a64((salt + ":").getBytes(StandardCharsets.UTF_8));
    }

    /** Uniform in [0, 1), one draw an impression: u = (mix64(fnv1a64(salt + ":" + id)) >> 11) * 2^-53. */
    static double draw(long saltHash, byte[] impressionId) {
        return (mix64(fnv1a64(saltHash, impressionId)) >>> 11) * 0x1.0p-53;
    }
}
