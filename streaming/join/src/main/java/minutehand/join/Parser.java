package minutehand.join;

import java.io.IOException;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonFactory;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonParser;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonProcessingException;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonToken;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;

/**
 * Reads one message against the declaration (docs/example.md, "In") and fills an event, or throws Bad with the reason.
 *
 * <p>An impression's part of an example is written here once, in declared order, as the bytes that every record of it repeats: the
 * join keeps and splices them and never parses again. Not for two threads.
 */
final class Parser {
    static final int MAX_BYTES = 1 << 20;
    static final int MAX_ID_BYTES = 128;
    static final int MAX_LIST = 64;
    /** Of a number. With the limits above it bounds an example, so that the broker takes each that we write. */
    static final int MAX_DIGITS = 64;
    /** The end of year 9999: no sum of a time and a window overflows below it. */
    static final long MAX_TIME_MS = 253_402_300_799_999L;

    /** Why a message is bad. It is no fault of the program, so it has no stack trace. */
    static final class Bad extends Exception {
        Bad(String reason) {
            super(reason, null, false, false);
        }
    }

    private final JsonFactory factory = new JsonFactory();
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
        if (message == null || message.length == 0) {
            throw new Bad("empty message");
        }
        if (message.length > MAX_BYTES) {
            throw new Bad("message is " + message.length + " bytes long: allowed are " + MAX_BYTES);
        }
        if (!Bytes.isText(message)) {
            throw new Bad("not UTF-8");
        }
        try (JsonParser json = factory.createParser(message)) {
            if (json.nextToken() != JsonToken.START_OBJECT) {
                throw new Bad("not a JSON object");
            }
            if (event.fromActions) {
                action(json, event);
            } else {
                impression(json, event);
            }
            if (json.nextToken() != null) {
                throw new Bad("not JSON: something follows the object");
            }
        } catch (JsonProcessingException e) {
            throw new Bad("not JSON: " + shortened(e.getOriginalMessage()));
        } catch (IOException e) {
            throw new Bad("not JSON: " + shortened(e.getMessage()));
        }
    }

    private void action(JsonParser json, Event event) throws IOException, Bad {
        String id = null;
        String action = null;
        long ts = -1;
        while (json.nextToken() != JsonToken.END_OBJECT) {
            String name = json.currentName();
            json.nextToken();
            switch (name) {
                case "impression_id" -> id = bounded(json, name, 1);
                case "action" -> action = text(json, name);
                case "ts_ms" -> ts = time(json, name);
                case "value" -> number(json, name, null);
                case "heartbeat_ms" -> {
                    heartbeat(json, event);
                    return;
                }
                default -> json.skipChildren();
            }
        }
        need(id != null, "impression_id");
        need(action != null, "action");
        need(ts >= 0, "ts_ms");
        Integer task = tasks.get(action);
        if (task == null) {
            throw new Bad("action is '" + shortened(action) + "': declared tasks are " + String.join(", ", settings.tasks));
        }
        event.kind = Event.ACTION;
        event.key = id;
        event.tsMs = ts;
        event.task = task;
    }

    private void impression(JsonParser json, Event event) throws IOException, Bad {
        String id = null;
        String lineage = "";
        long ts = -1;
        long user = Long.MIN_VALUE;
        long item = Long.MIN_VALUE;
        long seq = -1;
        values.clear();
        Arrays.fill(to, -1);
        Arrays.fill(scoreTo, -1);
        while (json.nextToken() != JsonToken.END_OBJECT) {
            String name = json.currentName();
            json.nextToken();
            switch (name) {
                case "impression_id" -> id = bounded(json, name, 1);
                case "user_id" -> user = entity(json, name);
                case "item_id" -> item = entity(json, name);
                case "ts_ms" -> ts = time(json, name);
                case "features" -> features(json);
                case "scores" -> scores(json);
                case "lineage" -> lineage = bounded(json, name, 0);
                case "seq" -> seq = integer(json, name);
                case "position" -> position(json);
                case "request_id", "arm" -> text(json, name);
                case "heartbeat_ms" -> {
                    heartbeat(json, event);
                    return;
                }
                default -> json.skipChildren();
            }
        }
        need(id != null, "impression_id");
        need(user != Long.MIN_VALUE, "user_id");
        need(item != Long.MIN_VALUE, "item_id");
        need(ts >= 0, "ts_ms");
        event.kind = Event.IMPRESSION;
        event.key = id;
        event.tsMs = ts;
        body.clear();
        body.ascii("\"impression_id\":").quoted(id).ascii(",\"user_id\":").number(user).ascii(",\"item_id\":").number(item);
        body.ascii(",\"ts_ms\":").number(ts).ascii(",\"lineage\":").quoted(lineage).ascii(",\"seq\":").number(seq);
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

    /** A heartbeat's other fields are ignored. */
    private static void heartbeat(JsonParser json, Event event) throws IOException, Bad {
        event.kind = Event.HEARTBEAT;
        event.key = "";
        event.tsMs = time(json, "heartbeat_ms");
        while (json.nextToken() != JsonToken.END_OBJECT) {
            json.nextToken();
            json.skipChildren();
        }
    }

    private void features(JsonParser json) throws IOException, Bad {
        if (json.currentToken() != JsonToken.START_OBJECT) {
            throw wrong(json, "features", "an object");
        }
        while (json.nextToken() != JsonToken.END_OBJECT) {
            String name = json.currentName();
            Integer place = places.get(name);
            json.nextToken();
            if (place == null) {
                json.skipChildren();
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
            throw wrong(json, name, "a list of int64");
        }
        values.put('[');
        int count = 0;
        while (json.nextToken() != JsonToken.END_ARRAY) {
            if (count++ > 0) {
                values.put(',');
            }
            values.number(entity(json, name));
        }
        if (count > MAX_LIST) {
            throw new Bad(name + " has " + count + " ids: allowed are " + MAX_LIST);
        }
        values.put(']');
    }

    private void scores(JsonParser json) throws IOException, Bad {
        if (json.currentToken() != JsonToken.START_OBJECT) {
            throw wrong(json, "scores", "an object");
        }
        while (json.nextToken() != JsonToken.END_OBJECT) {
            String name = json.currentName();
            Integer task = tasks.get(name);
            json.nextToken();
            if (task == null) {
                json.skipChildren();
                continue;
            }
            scoreFrom[task] = values.size();
            number(json, "scores." + name, values);
            scoreTo[task] = values.size();
            double score = json.getDoubleValue();
            if (score < 0 || score > 1) {
                throw wrong(json, "scores." + name, "a probability");
            }
        }
    }

    private static String bounded(JsonParser json, String name, int least) throws IOException, Bad {
        String text = text(json, name);
        int bytes = 0;
        for (int i = 0; i < text.length(); i++) {
            char c = text.charAt(i);
            // The two halves of a pair make 4 bytes.
            bytes += c < 0x80 ? 1 : c < 0x800 || Character.isSurrogate(c) ? 2 : 3;
        }
        if (bytes < least || bytes > MAX_ID_BYTES) {
            throw new Bad(name + " is " + bytes + " bytes long: allowed are " + least + " to " + MAX_ID_BYTES);
        }
        return text;
    }

    private static String text(JsonParser json, String name) throws IOException, Bad {
        if (json.currentToken() != JsonToken.VALUE_STRING) {
            throw wrong(json, name, "a string");
        }
        String text = json.getText();
        for (int i = 0; i < text.length(); i++) {
            if (Character.isSurrogate(text.charAt(i))) {
                boolean pair = Character.isHighSurrogate(text.charAt(i)) && i + 1 < text.length() && Character.isLowSurrogate(text.charAt(i + 1));
                if (!pair) {
                    throw new Bad(name + " holds half a surrogate pair: it has no UTF-8");
                }
                i++;
            }
        }
        return text;
    }

    private static long integer(JsonParser json, String name) throws IOException, Bad {
        if (json.currentToken() != JsonToken.VALUE_NUMBER_INT || json.getNumberType() == JsonParser.NumberType.BIG_INTEGER) {
            throw wrong(json, name, "an int64");
        }
        return json.getLongValue();
    }

    private static long entity(JsonParser json, String name) throws IOException, Bad {
        long id = integer(json, name);
        if (reserved(id)) {
            throw wrong(json, name, "an int64 but the two lowest, which are reserved");
        }
        return id;
    }

    private static void position(JsonParser json) throws IOException, Bad {
        long position = integer(json, "position");
        if (position != (int) position) {
            throw wrong(json, "position", "an int32");
        }
    }

    private static long time(JsonParser json, String name) throws IOException, Bad {
        long time = integer(json, name);
        if (time < 0 || time > MAX_TIME_MS) {
            throw wrong(json, name, "0 to " + MAX_TIME_MS);
        }
        return time;
    }

    /** Checks a number that is finite as a float32 too, and copies its text as it was sent. */
    private static void number(JsonParser json, String name, Bytes target) throws IOException, Bad {
        JsonToken token = json.currentToken();
        if (token != JsonToken.VALUE_NUMBER_INT && token != JsonToken.VALUE_NUMBER_FLOAT) {
            throw wrong(json, name, "a number");
        }
        char[] chars = json.getTextCharacters();
        int start = json.getTextOffset();
        int length = json.getTextLength();
        if (length > MAX_DIGITS) {
            throw new Bad(name + " is a number of " + length + " characters: allowed are " + MAX_DIGITS);
        }
        // Parsing a double costs more than all the rest; 30 characters without an exponent are below 1e30.
        boolean parse = length > 30;
        for (int i = start; i < start + length && !parse; i++) {
            parse = (chars[i] | 0x20) == 'e';
        }
        if (parse && !Float.isFinite((float) Double.parseDouble(new String(chars, start, length)))) {
            throw wrong(json, name, "a number that is finite as a float32");
        }
        if (target != null) {
            target.ascii(chars, start, length);
        }
    }

    private static void need(boolean there, String name) throws Bad {
        if (!there) {
            throw new Bad(name + " is missing");
        }
    }

    private static Bad wrong(JsonParser json, String name, String needed) throws IOException {
        String given = switch (json.currentToken()) {
            case START_OBJECT -> "an object";
            case START_ARRAY -> "a list";
            case VALUE_STRING -> "'" + shortened(json.getText()) + "'";
            default -> shortened(json.getText());
        };
        return new Bad(name + " is " + given + ": " + needed + " is needed");
    }

    private static String shortened(String text) {
        String line = text == null ? "" : text.replaceAll("\\p{Cntrl}+", " ");
        return line.length() > 120 ? line.substring(0, 120) + "..." : line;
    }
}
