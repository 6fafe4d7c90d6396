package minutehand.join;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.File;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.ObjectMapper;
import org.junit.jupiter.api.Test;

/** The vectors that Python's tests read too. */
class HashTest {
    private static JsonNode vectors(String name) throws Exception {
        JsonNode vectors = new ObjectMapper().readTree(new File(System.getProperty("minutehand.vectors"), "hash.json")).get(name);
        assertTrue(vectors.size() > 3, "there are vectors");
        return vectors;
    }

    @Test
    void fnv1a64() throws Exception {
        for (JsonNode one : vectors("fnv1a64")) {
            assertEquals(one.get("value").asText(), Long.toUnsignedString(Hash.fnv1a64(Bytes.utf8(one.get("text").asText()))));
        }
    }

    @Test
    void draw() throws Exception {
        for (JsonNode one : vectors("draw")) {
            double u = Hash.draw(Hash.saltHash(one.get("salt").asText()), Bytes.utf8(one.get("id").asText()));
            assertEquals(one.get("u").asDouble(), u);
        }
    }
}
