package minutehand.join;

import java.io.IOException;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashSet;
import java.util.Map;
import java.util.Set;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonFactory;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonParser;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonProcessingException;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonToken;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.StreamReadConstraints;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.StreamReadFeature;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;

/**
 * Reads one message against the declaration (docs/example.md, "In") and fills an event, or throws Bad with the reason.
 *
 * <p>An impression's part of an example is written here once, in declared order, as the bytes that every record of it repeats: the
 * join keeps and splices them and never parses again. Not for two threads.
 */
final class Parser {
    /** A message that breaks the contract: the kind of its fault, and the reason. It is no fault of the program, so it has no stack trace. */
    static final class Bad extends Exception {
        final String kind;

        Bad(String kind, String reason) {
            super(reason, null, false, false);
            this.kind = kind;
        }
    }

    /** Limits beyond the message's size are ours to judge, so that Python judges alike. */
    private static final StreamReadConstraints CONSTRAINTS = StreamReadConstraints.builder().maxNestingDepth(Contract.MAX_DEPTH)
            .maxNameLength(Contract.MAX_BYTES).maxNumberLength(Contract.MAX_BYTES).maxStringLength(Contract.MAX_BYTES).build();

    private final JsonFactory factory = JsonFactory.builder().streamReadConstraints(CONSTRAINTS)
            .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION).build();
    /** Thrown where a message turns out to be a heartbeat, which is read anew. */
    private static final Bad HEARTBEAT = new Bad("heartbeat", "");

    private final Settings settings;
    private final Map<String, Integer> places = new HashMap<>();
    private final Map<String, Integer> tasks = new HashMap<>();
    private final byte[][] fallbacks;
    private final byte[][] names;
    private final int[] from;
    private final int[] to;
    private final int[] scoreFrom;
    private final int[] scoreTo;
    private final byte[][] taskNames;
    private final Bytes values = new Bytes();
    private final Bytes body = new Bytes();

    Parser(Settings settings) {
        this.settings = settings;
        int n = settings.features.size();
        fallbacks = new byte[n][];
        names = new byte[n][];
        from = new int[n];
        to = new int[n];
        for (int i = 0; i < n; i++) {
            places.put(settings.features.get(i).name(), i);
            fallbacks[i] = Bytes.utf8(settings.features.get(i).fallback());
            names[i] = new Bytes().put(i == 0 ? '{' : ',').quoted(settings.features.get(i).name()).put(':').toArray();
        }
        taskNames = new byte[settings.tasks.size()][];
        scoreFrom = new int[taskNames.length];
        scoreTo = new int[taskNames.length];
        for (int i = 0; i < taskNames.length; i++) {
            tasks.put(settings.tasks.get(i), i);
            taskNames[i] = new Bytes().quoted(settings.tasks.get(i)).put(':').toArray();
        }
    }

    static boolean reserved(long id) {
        return id <= Long.MIN_VALUE + 1;
    }

    static boolean isId(JsonNode node) {
        return node.isIntegralNumber() && node.canConvertToLong() && !reserved(node.asLong());
    }

    /** Fills kind, key, tsMs, task and body of `event`, whose origin is known already. */
    void parse(byte[] message, Event event) throws Bad {
        if (message != null && message.length > Contract.MAX_BYTES) {
            throw new Bad("size", "message has " + message.length + " bytes, allowed is up to " + Contract.MAX_BYTES);
        }
        if (message == null || message.length == 0 || hasNul(message)) {
            throw new Bad("json", "message is not JSON: it is empty or holds a NUL");
        }
        if (!Bytes.isText(message)) {
            throw new Bad("encoding", "message is not UTF-8");
        }
        try (JsonParser json = factory.createParser(message)) {
            if (message[0] == (byte) 0xef || json.nextToken() != JsonToken.START_OBJECT) {
                wellFormed(message);
                throw new Bad("json", "message is no JSON object");
            }
            try {
                if (event.fromActions) {
                    action(json, event);
                } else {
                    impression(json, event);
                }
            } catch (Bad bad) {
                // What is no JSON, or a heartbeat, is that whatever else is wrong with it.
                if (!wellFormed(message)) {
                    throw bad;
                }
                heartbeat(message, event);
                return;
            }
            if (json.nextToken() != null) {
                throw new Bad("json", "message is not JSON: something follows the first value");
            }
        } catch (JsonProcessingException e) {
            throw new Bad("json", "message is not JSON: " + shortened(e.getOriginalMessage()));
        } catch (IOException e) {
            throw new Bad("json", "message is not JSON: " + shortened(e.getMessage()));
        }
    }

    private static boolean hasNul(byte[] message) {
        for (byte b : message) {
            if (b == 0) {
                return true;
            }
        }
        return false;
    }

    /** Reads a message to its end, Bad if it is not one JSON value; true if it is an object with heartbeat_ms. */
    private boolean wellFormed(byte[] message) throws IOException, Bad {
        boolean heartbeat = false;
        int depth = 0;
        boolean over = false;
        try (JsonParser json = factory.createParser(message)) {
            for (JsonToken token = json.nextToken(); token != null; token = json.nextToken()) {
                if (over) {
                    throw new Bad("json", "message is not JSON: something follows the first value");
                }
                checkNumber(json, token);
                heartbeat |= depth == 1 && token == JsonToken.FIELD_NAME && json.currentName().equals("heartbeat_ms");
                depth += token.isStructStart() ? 1 : token.isStructEnd() ? -1 : 0;
                over = depth == 0;
            }
        }
        return heartbeat;
    }

    /** A heartbeat's other fields are ignored. */
    private void heartbeat(byte[] message, Event event) throws IOException, Bad {
        try (JsonParser json = factory.createParser(message)) {
            json.nextToken();
            while (json.nextToken() != JsonToken.END_OBJECT) {
                String name = json.currentName();
                json.nextToken();
                if (name.equals("heartbeat_ms")) {
                    event.tsMs = time(json, name);
                } else {
                    skip(json);
                }
            }
        }
        event.kind = Event.HEARTBEAT;
        event.key = "";
    }

    /** Passes over a value of a field that is not ours. */
    private static void skip(JsonParser json) throws IOException, Bad {
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

    private static void checkNumber(JsonParser json, JsonToken token) throws IOException, Bad {
        if (token.isNumeric() && json.getTextLength() > Contract.MAX_NUMBER_CHARACTERS) {
            throw new Bad("length", "a number of " + json.getTextLength() + " characters, allowed are " + Contract.MAX_NUMBER_CHARACTERS);
        }
    }

    private void action(JsonParser json, Event event) throws IOException, Bad {
        String id = null;
        String action = null;
        long ts = -1;
        Set<String> missing = new LinkedHashSet<>(Contract.ACTION_NEEDS);
        values.clear();
        while (json.nextToken() != JsonToken.END_OBJECT) {
            String name = json.currentName();
            json.nextToken();
            missing.remove(name);
            switch (name) {
                case "impression_id" -> id = bounded(json, name, 1, Contract.MAX_KEY_BYTES);
                case "action" -> action = text(json, name);
                case "ts_ms" -> ts = time(json, name);
                case "value" -> number(json, name, values);
                case "heartbeat_ms" -> throw HEARTBEAT;
                default -> skip(json);
            }
        }
        need(missing);
        Integer task = tasks.get(action);
        if (task == null) {
            throw new Bad("task", "action is '" + shortened(action) + "', allowed are " + String.join(", ", settings.tasks));
        }
        event.kind = Event.ACTION;
        event.key = id;
        event.tsMs = ts;
        event.task = task;
        event.body = values.size() == 0 ? Contract.ABSENT_VALUE : values.toArray();
    }

    private void impression(JsonParser json, Event event) throws IOException, Bad {
        String id = null;
        String request = "";
        String lineage = "";
        long ts = -1;
        long user = 0;
        long item = 0;
        long seq = -1;
        int position = 0;
        Set<String> missing = new LinkedHashSet<>(Contract.IMPRESSION_NEEDS);
        values.clear();
        Arrays.fill(to, -1);
        Arrays.fill(scoreTo, -1);
        while (json.nextToken() != JsonToken.END_OBJECT) {
            String name = json.currentName();
            json.nextToken();
            missing.remove(name);
            switch (name) {
                case "impression_id" -> id = bounded(json, name, 1, Contract.MAX_KEY_BYTES);
                case "request_id" -> request = bounded(json, name, 0, Contract.MAX_TEXT_BYTES);
                case "user_id" -> user = entity(json, name);
                case "item_id" -> item = entity(json, name);
                case "ts_ms" -> ts = time(json, name);
                case "features" -> features(json);
                case "scores" -> scores(json);
                case "lineage" -> lineage = bounded(json, name, 0, Contract.MAX_TEXT_BYTES);
                case "seq" -> seq = integer(json, name);
                case "position" -> position = position(json);
                case "arm" -> bounded(json, name, 0, Contract.MAX_TEXT_BYTES);
                case "read_ms" -> time(json, name);
                case "heartbeat_ms" -> throw HEARTBEAT;
                default -> skip(json);
            }
        }
        need(missing);
        event.kind = Event.IMPRESSION;
        event.key = id;
        event.tsMs = ts;
        body.clear();
        body.ascii("\"impression_id\":").quoted(id).ascii(",\"request_id\":").quoted(request);
        body.ascii(",\"user_id\":").number(user).ascii(",\"item_id\":").number(item).ascii(",\"ts_ms\":").number(ts);
        body.ascii(",\"position\":").number(position).ascii(",\"lineage\":").quoted(lineage).ascii(",\"seq\":").number(seq);
        body.ascii(",\"features\":");
        for (int i = 0; i < names.length; i++) {
            body.put(names[i]);
            if (to[i] < 0) {
                body.put(fallbacks[i]);
            } else {
                body.put(values, from[i], to[i]);
            }
        }
        body.ascii(names.length == 0 ? "{},\"scores\":{" : "},\"scores\":{");
        char separator = 0;
        for (int i = 0; i < taskNames.length; i++) {
            if (scoreTo[i] >= 0) {
                if (separator != 0) {
                    body.put(separator);
                }
                separator = ',';
                body.put(taskNames[i]).put(values, scoreFrom[i], scoreTo[i]);
            }
        }
        body.put('}');
        event.body = body.toArray();
    }

    private void features(JsonParser json) throws IOException, Bad {
        if (json.currentToken() != JsonToken.START_OBJECT) {
            throw wrong("type", json, "features", "object");
        }
        while (json.nextToken() != JsonToken.END_OBJECT) {
            String name = json.currentName();
            Integer place = places.get(name);
            json.nextToken();
            if (place == null) {
                skip(json);
                continue;
            }
            from[place] = values.size();
            switch (settings.features.get(place).kind()) {
                case ID -> values.number(entity(json, name));
                case IDS -> ids(json, name);
                case NUMBER -> number(json, name, values);
                default -> throw new IllegalStateException(name);
            }
            to[place] = values.size();
        }
    }

    private void ids(JsonParser json, String name) throws IOException, Bad {
        if (json.currentToken() != JsonToken.START_ARRAY) {
            throw wrong("type", json, name, "array");
        }
        values.put('[');
        int count = 0;
        while (json.nextToken() != JsonToken.END_ARRAY) {
            if (count++ > 0) {
                values.put(',');
            }
            if (count <= Contract.MAX_LIST) {
                values.number(entity(json, name));
            } else {
                skip(json);
            }
        }
        if (count > Contract.MAX_LIST) {
            throw new Bad("length", name + " has " + count + " items, allowed are " + Contract.MAX_LIST);
        }
        values.put(']');
    }

    private void scores(JsonParser json) throws IOException, Bad {
        if (json.currentToken() != JsonToken.START_OBJECT) {
            throw wrong("type", json, "scores", "object");
        }
        while (json.nextToken() != JsonToken.END_OBJECT) {
            String name = json.currentName();
            Integer task = tasks.get(name);
            json.nextToken();
            if (task == null) {
                skip(json);
                continue;
            }
            scoreFrom[task] = values.size();
            number(json, name, values);
            scoreTo[task] = values.size();
            double score = json.getDoubleValue();
            if (score < 0 || score > 1) {
                throw wrong("range", json, name, "0 to 1");
            }
        }
    }

    private static String bounded(JsonParser json, String name, int least, int most) throws IOException, Bad {
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

    private static String text(JsonParser json, String name) throws IOException, Bad {
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

    private static long integer(JsonParser json, String name) throws IOException, Bad {
        if (json.currentToken() != JsonToken.VALUE_NUMBER_INT) {
            throw wrong("type", json, name, "integer");
        }
        checkNumber(json, JsonToken.VALUE_NUMBER_INT);
        if (json.getNumberType() == JsonParser.NumberType.BIG_INTEGER) {
            throw wrong("range", json, name, Long.MIN_VALUE + " to " + Long.MAX_VALUE);
        }
        return json.getLongValue();
    }

    private static long entity(JsonParser json, String name) throws IOException, Bad {
        long id = integer(json, name);
        if (reserved(id)) {
            throw new Bad("reserved", name + " is " + id + ", a reserved id");
        }
        return id;
    }

    private static int position(JsonParser json) throws IOException, Bad {
        long position = integer(json, "position");
        if (position != (int) position) {
            throw wrong("range", json, "position", Integer.MIN_VALUE + " to " + Integer.MAX_VALUE);
        }
        return (int) position;
    }

    private static long time(JsonParser json, String name) throws IOException, Bad {
        long time = integer(json, name);
        if (time < 0 || time > Contract.MAX_TIME_MS) {
            throw wrong("range", json, name, "0 to " + Contract.MAX_TIME_MS);
        }
        return time;
    }

    /** Checks a number that is finite as a float32 too, and copies its text as it was sent. */
    private static void number(JsonParser json, String name, Bytes target) throws IOException, Bad {
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

    private static void need(Set<String> missing) throws Bad {
        if (!missing.isEmpty()) {
            throw new Bad("missing", missing.iterator().next() + " is missing");
        }
    }

    private static Bad wrong(String kind, JsonParser json, String name, String allowed) throws IOException {
        String given = switch (json.currentToken()) {
            case START_OBJECT -> "an object";
            case START_ARRAY -> "an array";
            case VALUE_STRING -> "'" + shortened(json.getText()) + "'";
            default -> shortened(json.getText());
        };
        return new Bad(kind, name + " is " + given + ", allowed is " + allowed);
    }

    private static String shortened(String text) {
        String line = text == null ? "" : text.replaceAll("\\p{Cntrl}+", " ");
        return line.length() > 120 ? line.substring(0, 120) + "..." : line;
    }
}
