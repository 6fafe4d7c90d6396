package minutehand.join;

import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;

/** A growing buffer that JSON is written into, byte by byte. Not for two threads. */
final class Bytes {
    private byte[] data = new byte[1024];
    private int size;

    static byte[] utf8(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    static boolean isUtf8(byte[] message) {
        boolean ascii = true;
        for (byte b : message) {
            ascii &= b >= 0;
        }
        if (ascii) {
            return true;
        }
        try {
            StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(message));
            return true;
        } catch (CharacterCodingException e) {
            return false;
        }
    }

    void clear() {
        size = 0;
    }

    int size() {
        return size;
    }

    byte[] toArray() {
        return Arrays.copyOf(data, size);
    }

    private void reserve(int more) {
        if (size + more > data.length) {
            data = Arrays.copyOf(data, Math.max(size + more, data.length * 2));
        }
    }

    Bytes put(byte[] bytes) {
        return put(bytes, 0, bytes.length);
    }

    Bytes put(byte[] bytes, int from, int length) {
        reserve(length);
        System.arraycopy(bytes, from, data, size, length);
        size += length;
        return this;
    }

    Bytes put(Bytes other, int from, int to) {
        return put(other.data, from, to - from);
    }

    Bytes put(char ascii) {
        reserve(1);
        data[size++] = (byte) ascii;
        return this;
    }

    /** Text that is known to be ASCII, such as a number. */
    Bytes ascii(String text) {
        reserve(text.length());
        for (int i = 0; i < text.length(); i++) {
            data[size++] = (byte) text.charAt(i);
        }
        return this;
    }

    Bytes ascii(char[] chars, int from, int length) {
        reserve(length);
        for (int i = from; i < from + length; i++) {
            data[size++] = (byte) chars[i];
        }
        return this;
    }

    Bytes number(long value) {
        if (value == Long.MIN_VALUE) {
            return ascii("-9223372036854775808");
        }
        reserve(20);
        if (value < 0) {
            data[size++] = '-';
            value = -value;
        }
        int digits = 1;
        for (long rest = value; rest >= 10; rest /= 10) {
            digits++;
        }
        for (int i = size + digits - 1; i >= size; i--) {
            data[i] = (byte) ('0' + value % 10);
            value /= 10;
        }
        size += digits;
        return this;
    }

    /** A JSON string, quotes and escapes included. */
    Bytes quoted(String text) {
        put('"');
        boolean plain = true;
        for (int i = 0; i < text.length() && plain; i++) {
            char c = text.charAt(i);
            plain = c >= 0x20 && c < 0x7f && c != '"' && c != '\\';
        }
        if (plain) {
            ascii(text);
        } else {
            escaped(text);
        }
        return put('"');
    }

    private void escaped(String text) {
        StringBuilder safe = new StringBuilder(text.length() + 16);
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            if (c == '"' || c == '\\') {
                safe.append('\\').append(c);
            } else if (c < 0x20) {
                safe.append(String.format("\\u%04x", (int) c));
            } else {
                safe.append(c);
            }
        }
        put(utf8(safe.toString()));
    }
}
