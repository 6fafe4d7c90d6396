package minutehand.join;

import java.io.IOException;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.ObjectMapper;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.node.ObjectNode;

/**
 * All that a checkpointed state depends on, as job.json has it: Kafka's cluster and topics, the contract, the clock and the declaration.
 *
 * <p>A state outlives the growth of its source. An open impression keeps the features that it came with, and readers of its examples
 * take the defaults of the others. The bits of its closed tasks keep their places, because new tasks stand at the end. The rules are
 * those of streaming/growth.py, also for what only other readers depend on: else the join would go on, and they would not.
 */
final class Owner {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final List<String> SAME = List.of("cluster", "topics", "contract", "source", "clock");

    /** The changes since an owner before, a line each. */
    record Growth(List<String> added, List<String> refused) {}

    private final ObjectNode content = JSON.createObjectNode();
    /** The same owner as the versions before wrote it: they knew no growth. */
    private final String former;

    Owner(Settings settings, String cluster, Map<String, String> topicIds) throws IOException {
        former = cluster + " " + topicIds + " " + Records.sha256(Bytes.utf8(
                Contract.VERSION + settings.source + settings.tasks + settings.features + settings.windowMs + settings.live()));
        content.put("cluster", cluster).set("topics", JSON.valueToTree(topicIds));
        content.put("contract", Contract.VERSION).put("source", settings.source).put("clock", settings.live() ? "live" : "replay");
        content.set("declaration", JSON.readTree(settings.declaration));
    }

    String toJson() {
        return content.toPrettyString();
    }

    Growth since(String before) {
        if (before.equals(former)) {
            return new Growth(List.of(), List.of());
        }
        JsonNode old;
        try {
            old = JSON.readTree(before);
        } catch (IOException e) {
            return new Growth(List.of(), List.of("job.json is of a version before, and of another job: it was " + before));
        }
        Growth growth = new Growth(new ArrayList<>(), new ArrayList<>());
        for (String name : SAME) {
            difference(name, old.path(name), content.get(name), growth.refused);
        }
        JsonNode was = old.path("declaration");
        JsonNode is = content.get("declaration");
        for (String name : List.of("name", "judged", "window_ms")) {
            difference(name, was.path(name), is.path(name), growth.refused);
        }
        tasks(was.path("tasks"), is.path("tasks"), growth);
        features(byName(was), byName(is), growth);
        return growth;
    }

    private static void tasks(JsonNode was, JsonNode is, Growth growth) {
        for (int place = 0; place < was.size(); place++) {
            if (!was.get(place).equals(is.path(place))) {
                growth.refused.add("tasks are " + is + ", were " + was);
                return;
            }
        }
        for (int place = was.size(); place < is.size(); place++) {
            growth.added.add("task " + is.get(place).asText() + " is added");
        }
    }

    private static void features(Map<String, JsonNode> was, Map<String, JsonNode> is, Growth growth) {
        was.forEach((name, feature) -> {
            if (!is.containsKey(name)) {
                growth.refused.add("feature " + name + " is removed");
                return;
            }
            for (String field : List.of("kind", "table", "default")) {
                difference("feature " + name + ": " + field, feature.path(field), is.get(name).path(field), growth.refused);
            }
        });
        List<String> stayed = is.keySet().stream().filter(was::containsKey).toList();
        if (stayed.size() == was.size() && !stayed.equals(List.copyOf(was.keySet()))) {
            growth.refused.add("the order of the features is " + stayed + ", was " + was.keySet());
        }
        is.keySet().stream().filter(name -> !was.containsKey(name)).forEach(name -> growth.added.add("feature " + name + " is added"));
    }

    private static Map<String, JsonNode> byName(JsonNode declaration) {
        Map<String, JsonNode> features = new LinkedHashMap<>();
        declaration.path("features").forEach(feature -> features.put(feature.path("name").asText(), feature));
        return features;
    }

    /** Of numbers the value counts: 0 and 0.0 are one default. */
    private static void difference(String name, JsonNode was, JsonNode is, List<String> refused) {
        boolean same = was.isNumber() && is.isNumber() ? was.decimalValue().compareTo(is.decimalValue()) == 0 : was.equals(is);
        if (!same) {
            refused.add(name + " is " + is + ", was " + was);
        }
    }
}
