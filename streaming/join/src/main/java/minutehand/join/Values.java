package minutehand.join;

import java.io.IOException;
import java.util.Set;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonParser;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonToken;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;

/**
 * Reads the JSON value at the parser's place and checks it against the contract.
 *
 * <p>Throws Bad, which names the field, its value and what is allowed.
 */
final class Values {
    private Values() {}

    static boolean reserved(long id) {
        return id <= Long.MIN_VALUE + 1;
    }

    static boolean isId(JsonNode node) {
        return node.isIntegralNumber() && node.canConvertToLong() && !reserved(node.asLong());
    }

    static String bounded(JsonParser json, String name, int least, int most) throws IOException, Bad {
        String text = text(json, name);
        int bytes = 0;
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            // The two halves of a pair make 4 bytes.
            bytes += c < 0x80 ? 1 : c < 0x800 || Character.isSurrogate(c) ? 2 : 3;
        }
        if (bytes < least || bytes > most) {
            throw new Bad("length", name + " has " + bytes + " bytes, allowed are " + least + " to " + most);
        }
        return text;
    }

    static String text(JsonParser json, String name) throws IOException, Bad {
        if (json.currentToken() != JsonToken.VALUE_STRING) {
            throw wrong("type", json, name, "string");
        }
        String text = json.getText();
        for (int i = 0; i < text.length(); i++) {
            if (Character.isSurrogate(text.charAt(i))) {
                boolean pair = Character.isHighSurrogate(text.charAt(i)) && i + 1 < text.length() && Character.isLowSurrogate(text.charAt(i + 1));
                if (!pair) {
                    throw new Bad("encoding", name + " holds half a surrogate pair, which has no UTF-8");
                }
                i++;
            }
        }
        return text;
    }

    static long integer(JsonParser json, String name) throws IOException, Bad {
        if (json.currentToken() != JsonToken.VALUE_NUMBER_INT) {
            throw wrong("type", json, name, "integer");
        }
        checkNumber(json, JsonToken.VALUE_NUMBER_INT);
        if (json.getNumberType() == JsonParser.NumberType.BIG_INTEGER) {
            throw wrong("range", json, name, Long.MIN_VALUE + " to " + Long.MAX_VALUE);
        }
        return json.getLongValue();
    }

    static long entity(JsonParser json, String name) throws IOException, Bad {
        long id = integer(json, name);
        if (reserved(id)) {
            throw new Bad("reserved", name + " is " + id + ", a reserved id");
        }
        return id;
    }

    static int position(JsonParser json) throws IOException, Bad {
        long position = integer(json, "position");
        if (position != (int) position) {
            throw wrong("range", json, "position", Integer.MIN_VALUE + " to " + Integer.MAX_VALUE);
        }
        return (int) position;
    }

    static long time(JsonParser json, String name) throws IOException, Bad {
        long time = integer(json, name);
        if (time < 0 || time > Contract.MAX_TIME_MS) {
            throw wrong("range", json, name, "0 to " + Contract.MAX_TIME_MS);
        }
        return time;
    }

    /** Checks that a number is finite as a float32 too, and copies its text as it was sent. */
    static void number(JsonParser json, String name, Bytes target) throws IOException, Bad {
        JsonToken token = json.currentToken();
        if (!token.isNumeric()) {
            throw wrong("type", json, name, "number");
        }
        checkNumber(json, token);
        char[] chars = json.getTextCharacters();
        int start = json.getTextOffset();
        int length = json.getTextLength();
        // Parsing a double costs more than all the rest; 30 characters without an exponent are below 1e30.
        boolean parse = length > 30;
        for (int i = start; i < start + length && !parse; i++) {
            parse = (chars[i] | 0x20) == 'e';
        }
        if (parse && !(Math.abs(Double.parseDouble(new String(chars, start, length))) < Contract.NUMBER_BELOW)) {
            throw wrong("range", json, name, "a number that is finite as a float32");
        }
        target.ascii(chars, start, length);
    }

    static void checkNumber(JsonParser json, JsonToken token) throws IOException, Bad {
        if (token.isNumeric() && json.getTextLength() > Contract.MAX_NUMBER_CHARACTERS) {
            throw new Bad("length", "a number of " + json.getTextLength() + " characters, allowed are " + Contract.MAX_NUMBER_CHARACTERS);
        }
    }

    /** Passes over the value of a field that the contract does not have. */
    static void skip(JsonParser json) throws IOException, Bad {
        int depth = 0;
        JsonToken token = json.currentToken();
        while (true) {
            checkNumber(json, token);
            depth += token.isStructStart() ? 1 : token.isStructEnd() ? -1 : 0;
            if (depth == 0) {
                return;
            }
            token = json.nextToken();
        }
    }

    static void need(Set<String> missing) throws Bad {
        if (!missing.isEmpty()) {
            throw new Bad("missing", missing.iterator().next() + " is missing");
        }
    }

    static Bad wrong(String kind, JsonParser json, String name, String allowed) throws IOException {
        String value = switch (json.currentToken()) {
            case START_OBJECT -> "an object";
            case START_ARRAY -> "an array";
            case VALUE_STRING -> "'" + shortened(json.getText()) + "'";
            default -> shortened(json.getText());
        };
        return new Bad(kind, name + " is " + value + ", allowed is " + allowed);
    }

    static String shortened(String text) {
        String line = text == null ? "" : text.replaceAll("\\p{Cntrl}+", " ");
        return line.length() > 120 ? line.substring(0, 120) + "..." : line;
    }
}
