package minutehand.join;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.ByteArrayOutputStream;
import java.io.File;
import java.util.ArrayList;
import java.util.Base64;
import java.util.List;
import java.util.stream.Stream;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.TestFactory;

/** The table of good and bad messages, tests/vectors/events.json, which Python's readers are held to as well. */
class ContractTest {
    private static JsonNode vectors() throws Exception {
        return Harness.JSON.readTree(new File(System.getProperty("minutehand.vectors"), "events.json"));
    }

    private static byte[] message(JsonNode one) throws Exception {
        if (one.has("base64")) {
            return Base64.getDecoder().decode(one.get("base64").asText());
        }
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        out.write(Bytes.utf8(one.get("message").asText()));
        for (int i = 0; i < one.path("times").asInt(0); i++) {
            out.write(Bytes.utf8(one.get("repeat").asText()));
        }
        out.write(Bytes.utf8(one.path("end").asText("")));
        return out.toByteArray();
    }

    @TestFactory
    Stream<DynamicTest> everyMessage() throws Exception {
        JsonNode vectors = vectors();
        Settings settings = new Settings(Harness.JSON.readTree("{\"bootstrap\": \"h:1\", \"source\": \"t\", \"state_dir\": \"state\", \"declaration\": "
                + vectors.get("declaration") + "}"));
        List<DynamicTest> tests = new ArrayList<>();
        for (JsonNode one : vectors.get("cases")) {
            tests.add(DynamicTest.dynamicTest("> " + one.get("name").asText(), () -> {
                Deserializer deserializer = new Deserializer(settings);
                deserializer.open(null);
                Event event = deserializer.event(new ConsumerRecord<>(one.get("topic").asText(), 1, 42, null, message(one)));
                if (one.get("verdict").asText().equals("good")) {
                    assertTrue(event.kind != Event.BAD, () -> new String(event.body));
                } else {
                    assertEquals(Event.BAD, event.kind);
                    JsonNode dead = Harness.JSON.readTree(event.body);
                    assertEquals(one.get("kind").asText(), dead.get("kind").asText(), dead.get("reason").asText());
                }
            }));
        }
        assertTrue(tests.size() >= 120);
        return tests.stream();
    }
}
