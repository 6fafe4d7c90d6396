package minutehand.join;

import java.io.IOException;
import java.io.InputStream;
import java.util.LinkedHashSet;
import java.util.Set;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.ObjectMapper;

/** The limits of a message. They are those of streaming/contract/schema.json, which Python reads too. */
final class Contract {
    static final int VERSION;
    static final int MAX_BYTES;
    static final int MAX_DEPTH;
    /** The length of a written number. With the other limits it bounds an example: the broker takes every one. */
    static final int MAX_NUMBER_CHARACTERS;
    static final int MAX_LIST;
    static final int MAX_KEY_BYTES;
    static final int MAX_TEXT_BYTES;
    /** The end of year 9999: the sum of such a time and a window never overflows. */
    static final long MAX_TIME_MS;
    /** A number below it is finite as a float32. */
    static final double NUMBER_BELOW;
    static final Set<String> IMPRESSION_NEEDS;
    static final Set<String> ACTION_NEEDS;
    /** An absent value of an action, as it is written in an example. */
    static final byte[] ABSENT_VALUE;

    static {
        JsonNode schema = load();
        JsonNode defs = schema.get("$defs");
        VERSION = schema.get("version").asInt();
        MAX_BYTES = schema.get("message").get("maxBytes").asInt();
        MAX_DEPTH = schema.get("message").get("maxDepth").asInt();
        MAX_NUMBER_CHARACTERS = schema.get("message").get("maxNumberCharacters").asInt();
        MAX_LIST = defs.get("ids").get("maxItems").asInt();
        MAX_KEY_BYTES = defs.get("key").get("maxBytes").asInt();
        MAX_TEXT_BYTES = defs.get("text").get("maxBytes").asInt();
        MAX_TIME_MS = defs.get("time").get("maximum").asLong();
        NUMBER_BELOW = defs.get("number").get("exclusiveMaximum").asDouble();
        IMPRESSION_NEEDS = needs(schema, "impressions");
        ACTION_NEEDS = needs(schema, "actions");
        ABSENT_VALUE = Bytes.utf8(schema.get("actions").get("properties").get("value").get("default").toString());
    }

    private Contract() {}

    private static Set<String> needs(JsonNode schema, String topic) {
        Set<String> names = new LinkedHashSet<>();
        schema.get(topic).get("required").forEach(name -> names.add(name.asText()));
        return names;
    }

    private static JsonNode load() {
        try (InputStream file = Contract.class.getResourceAsStream("/contract/schema.json")) {
            return new ObjectMapper().readTree(file);
        } catch (IOException e) {
            throw new IllegalStateException("contract/schema.json is not in the jar", e);
        }
    }
}
