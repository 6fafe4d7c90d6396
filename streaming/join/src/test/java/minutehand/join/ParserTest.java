package minutehand.join;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.Base64;
import java.util.List;
import java.util.Random;
import java.util.stream.Stream;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;

/** An impression as it is learned, and a bad message as it is kept. */
class ParserTest {
    private static final String GOOD = "\"impression_id\":\"a\",\"user_id\":1,\"item_id\":2,\"ts_ms\":5";
    private static final String MAX = "" + Long.MAX_VALUE;

    /** `message` as bytes of Latin-1, so that a case can hold bytes that are not UTF-8. */
    record Case(String topic, String message, String outcome) {}

    private static Case features(String features, String outcome) {
        return new Case("impressions", "{" + GOOD + ",\"features\":{" + features + "}}", outcome);
    }

    private static Case shown(String fields, String outcome) {
        return new Case("impressions", "{" + fields + "}", outcome);
    }

    private static Case acted(String fields, String outcome) {
        return new Case("actions", "{" + fields + "}", outcome);
    }

    private static final List<Case> CASES = List.of(
            // Learned as declared.
            features("", "{\"user\":7,\"tags\":[],\"age\":0.5}"),
            shown(GOOD, "{\"user\":7,\"tags\":[],\"age\":0.5}"),
            features("\"age\":1,\"tags\":[],\"user\":0,\"x\":{\"y\":[1]}", "{\"user\":0,\"tags\":[],\"age\":1}"),
            features("\"user\":" + MAX + ",\"tags\":[-1,0," + MAX + ",-9223372036854775806]", "{\"user\":" + MAX + ",\"tags\":[-1,0," + MAX + ",-9223372036854775806],\"age\":0.5}"),
            features("\"age\":-3.4e38", "{\"user\":7,\"tags\":[],\"age\":-3.4e38}"),
            acted("\"impression_id\":\"a\",\"action\":\"like\",\"ts_ms\":0", ""),
            // Dead, each with its reason; ContractTest has the whole table.
            features("\"user\":-9223372036854775808", "user is -9223372036854775808, a reserved id"),
            features("\"user\":\"1\"", "user is '1', allowed is integer"),
            features("\"age\":1e39", "age is 1e39, allowed is a number that is finite as a float32"),
            shown(GOOD + ",\"scores\":{\"like\":1.5}", "like is 1.5, allowed is 0 to 1"),
            shown(GOOD + ",\"features\":[]", "features is an array, allowed is object"),
            shown(GOOD.replace("\"a\"", "\"\""), "impression_id has 0 bytes, allowed are 1 to 128"),
            shown(GOOD.replace(":5", ":-1"), "ts_ms is -1, allowed is 0 to 253402300799999"),
            shown("\"user_id\":1,\"item_id\":2,\"ts_ms\":5", "impression_id is missing"),
            acted("\"impression_id\":\"a\",\"action\":\"share\",\"ts_ms\":1", "action is 'share', allowed are click, like, hate"),
            new Case("actions", "{\"heartbeat_ms\":12,\"lease\":\"mine\"}", "lease is 'mine': only the replay that owns the clock sends heartbeats"),
            new Case("impressions", "{\"heartbeat_ms\":12}", "lease is '': only the replay that owns the clock sends heartbeats"),
            new Case("actions", "7", "message is no JSON object"),
            new Case("impressions", "{" + GOOD + "} {}", "message is not JSON: something follows the first value"),
            new Case("impressions", "{" + GOOD + ",\"arm\":\"\u00ff\"}", "message is not UTF-8"),
            new Case("impressions", "{\"x\":\"" + "y".repeat(Contract.MAX_BYTES), "message has 1000006 bytes, allowed is up to 1000000"));

    private static Event read(String topic, byte[] message) throws Exception {
        Deserializer deserializer = new Deserializer(Harness.settings(1.0));
        deserializer.open(null);
        return deserializer.event(new ConsumerRecord<>(topic, 1, 42, null, message));
    }

    @TestFactory
    Stream<DynamicTest> everyMessage() {
        return CASES.stream().map(one -> DynamicTest.dynamicTest("> " + one.message.substring(0, Math.min(80, one.message.length())), () -> {
            byte[] message = one.message.getBytes("ISO-8859-1");
            Event event = read(one.topic, message);
            if (one.outcome.startsWith("{")) {
                assertEquals(Event.IMPRESSION, event.kind, new String(event.body));
                String body = new String(event.body, "UTF-8");
                assertTrue(body.contains("\"features\":" + one.outcome + ",\"scores\":{}"), body);
                assertArrayEquals(message, event.message);
            } else if (one.outcome.isEmpty()) {
                assertEquals(Event.ACTION, event.kind, new String(event.body));
            } else {
                assertEquals(Event.BAD, event.kind);
                JsonNode dead = Harness.JSON.readTree(event.body);
                String reason = dead.get("reason").asText();
                assertEquals(one.outcome, reason);
                assertEquals(one.topic, dead.get("topic").asText());
                assertEquals(42, dead.get("offset").asLong());
                assertEquals(1, dead.get("partition").asInt());
                assertEquals(message.length, dead.get("size").asInt());
                byte[] kept = Base64.getDecoder().decode(dead.get("message").asText());
                assertArrayEquals(java.util.Arrays.copyOf(message, Math.min(message.length, 65536)), kept);
                assertEquals(Records.sha256(message), dead.get("sha256").asText());
            }
        }));
    }

    @Test
    void heartbeatsAreNoEvents() throws Exception {
        Event event = read("impressions", Bytes.utf8("{\"heartbeat_ms\": 12, \"lease\": \"clock\", \"by\": {\"x\": [1]}}"));
        assertEquals(Event.HEARTBEAT, event.kind);
        assertEquals(12, event.tsMs);
    }

    @Test
    void aTombstoneIsBad() throws Exception {
        assertEquals(Event.BAD, read("actions", null).kind);
    }

    @Test
    void nothingThrowsWhateverIsCutOrFlipped() throws Exception {
        byte[] good = Bytes.utf8("{" + GOOD + ",\"features\":{\"user\":1,\"tags\":[1,2],\"age\":1e3},\"scores\":{\"like\":0.5},\"arm\":\"ü\"}");
        Random random = new Random(1);
        int bad = 0;
        for (int i = 0; i < 20_000; i++) {
            byte[] message = java.util.Arrays.copyOf(good, random.nextInt(2) == 0 ? good.length : random.nextInt(good.length));
            for (int flips = random.nextInt(3); flips > 0 && message.length > 0; flips--) {
                message[random.nextInt(message.length)] = (byte) random.nextInt(256);
            }
            Event event = read(random.nextInt(4) == 0 ? "actions" : "impressions", message);
            Harness.JSON.readTree(event.kind == Event.IMPRESSION ? Bytes.utf8("{" + new String(event.body, "UTF-8") + "}") : Bytes.utf8("{}"));
            bad += event.kind == Event.BAD ? 1 : 0;
        }
        assertTrue(bad > 10_000 && bad < 20_000, "" + bad);
    }

    @Test
    void anEventSurvivesTheNetwork() throws Exception {
        Event event = read("impressions", Bytes.utf8("{" + GOOD.replace("\"a\"", "\"ü\"") + "}"));
        org.apache.flink.core.memory.DataOutputSerializer out = new org.apache.flink.core.memory.DataOutputSerializer(16);
        event.write(out);
        Event copy = new Event();
        copy.read(new org.apache.flink.core.memory.DataInputDeserializer(out.getCopyOfBuffer()));
        assertEquals("ü", copy.key);
        assertEquals(5, copy.tsMs);
        assertArrayEquals(event.body, copy.body);
        assertArrayEquals(event.message, copy.message);
    }
}
