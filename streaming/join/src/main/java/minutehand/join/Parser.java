package minutehand.join;

import java.io.IOException;
import java.util.LinkedHashSet;
import java.util.Set;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonFactory;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonParser;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonProcessingException;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonToken;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.StreamReadConstraints;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.StreamReadFeature;

/** Reads one message into an event, by the declaration (docs/example.md, "In"). Not for two threads. */
final class Parser {
    /** The parser judges nothing but depth: our own checks must agree with those of Python. */
    private static final StreamReadConstraints CONSTRAINTS = StreamReadConstraints.builder().maxNestingDepth(Contract.MAX_DEPTH)
            .maxNameLength(Contract.MAX_BYTES).maxNumberLength(Contract.MAX_BYTES).maxStringLength(Contract.MAX_BYTES).build();

    private final JsonFactory factory = JsonFactory.builder().streamReadConstraints(CONSTRAINTS)
            .enable(StreamReadFeature.STRICT_DUPLICATE_DETECTION).build();
    private final Settings settings;
    private final Impressions impressions;
    private final Bytes value = new Bytes();

    Parser(Settings settings) {
        this.settings = settings;
        impressions = new Impressions(settings);
    }

    /** Fills kind, key, tsMs, task and body of `event`; its origin is there already. */
    void parse(byte[] message, Event event) throws Bad {
        if (message != null && message.length > Contract.MAX_BYTES) {
            throw new Bad("size", "message has " + message.length + " bytes, allowed is up to " + Contract.MAX_BYTES);
        }
        if (message == null || message.length == 0 || hasNul(message)) {
            throw new Bad("json", "message is not JSON: it is empty or holds a NUL");
        }
        if (!Bytes.isUtf8(message)) {
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
                    impressions.read(json, event);
                }
            } catch (Bad bad) {
                // Other faults of a message that is no JSON, or a heartbeat, do not matter.
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
            throw new Bad("json", "message is not JSON: " + Values.shortened(e.getOriginalMessage()));
        } catch (IOException e) {
            throw new Bad("json", "message is not JSON: " + Values.shortened(e.getMessage()));
        }
    }

    /** A NUL would make the JSON reader guess UTF-16. */
    private static boolean hasNul(byte[] message) {
        for (byte b : message) {
            if (b == 0) {
                return true;
            }
        }
        return false;
    }

    /** Reads a message to its end. Returns whether it has heartbeat_ms; throws Bad if it is not one JSON value. */
    private boolean wellFormed(byte[] message) throws IOException, Bad {
        boolean heartbeat = false;
        int depth = 0;
        boolean over = false;
        try (JsonParser json = factory.createParser(message)) {
            for (JsonToken token = json.nextToken(); token != null; token = json.nextToken()) {
                if (over) {
                    throw new Bad("json", "message is not JSON: something follows the first value");
                }
                Values.checkNumber(json, token);
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
                    event.tsMs = Values.time(json, name);
                } else {
                    Values.skip(json);
                }
            }
        }
        event.kind = Event.HEARTBEAT;
        event.key = "";
    }

    private void action(JsonParser json, Event event) throws IOException, Bad {
        String id = null;
        String action = null;
        long ts = -1;
        Set<String> missing = new LinkedHashSet<>(Contract.ACTION_NEEDS);
        value.clear();
        while (json.nextToken() != JsonToken.END_OBJECT) {
            String name = json.currentName();
            json.nextToken();
            missing.remove(name);
            switch (name) {
                case "impression_id" -> id = Values.bounded(json, name, 1, Contract.MAX_KEY_BYTES);
                case "action" -> action = Values.text(json, name);
                case "ts_ms" -> ts = Values.time(json, name);
                case "value" -> Values.number(json, name, value);
                case "heartbeat_ms" -> throw Bad.HEARTBEAT;
                default -> Values.skip(json);
            }
        }
        Values.need(missing);
        int task = settings.tasks.indexOf(action);
        if (task < 0) {
            throw new Bad("task", "action is '" + Values.shortened(action) + "', allowed are " + String.join(", ", settings.tasks));
        }
        event.kind = Event.ACTION;
        event.key = id;
        event.tsMs = ts;
        event.task = task;
        event.body = value.size() == 0 ? Contract.ABSENT_VALUE : value.toArray();
    }
}
