package minutehand.join;

import java.io.IOException;
import java.io.Serializable;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import java.util.Set;
import java.util.stream.Stream;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.ObjectMapper;

/** The job's settings, read from one JSON file. An error names the setting, its value and what is allowed. */
final class Settings implements Serializable {
    private static final Set<String> NAMES = Set.of("bootstrap", "source", "declaration", "pi", "salt", "checkpoint_ms", "state_dir",
            "rest_port", "rest_address", "parallelism", "topics", "transaction_timeout_ms", "max_disorder_ms", "lease");

    /** One input of the model; `fallback` is the JSON of its default. */
    record Feature(String name, Kind kind, String fallback) implements Serializable {}

    enum Kind { ID, IDS, NUMBER }

    final String bootstrap;
    final String source;
    final List<Feature> features;
    final List<String> tasks;
    final long windowMs;
    final long maxDisorderMs;
    /** The lease of the replay that owns the clock. Empty: live, the broker's stamps are the clock. */
    final String lease;
    final double pi;
    final String salt;
    final long checkpointMs;
    final String stateDir;
    final int restPort;
    final String restAddress;
    final int parallelism;
    final String impressions;
    final String actions;
    final String examples;
    final long transactionTimeoutMs;
    /** The declaration as it was written into the settings. */
    final String declaration;

    static Settings read(Path file) throws IOException {
        JsonNode root;
        try {
            root = new ObjectMapper().readTree(Files.readAllBytes(file));
        } catch (IOException e) {
            throw new IllegalArgumentException("settings file " + file + ": " + e.getMessage());
        }
        return new Settings(root);
    }

    Settings(JsonNode root) {
        check(root.isObject(), "settings", root, "one JSON object");
        for (Iterator<String> names = root.fieldNames(); names.hasNext(); ) {
            String name = names.next();
            check(NAMES.contains(name), name, root.get(name), "no such setting; there are " + String.join(", ", NAMES.stream().sorted().toList()));
        }
        bootstrap = text(root, "bootstrap", null);
        source = text(root, "source", null);
        pi = root.path("pi").asDouble(1.0);
        check(!root.has("pi") || root.get("pi").isNumber() && pi > 0 && pi <= 1, "pi", root.get("pi"), "a number, 0 < pi <= 1");
        salt = text(root, "salt", "minutehand");
        checkpointMs = integer(root, "checkpoint_ms", 1000L, 50, 600_000);
        stateDir = Path.of(text(root, "state_dir", null)).toAbsolutePath().normalize().toString();
        restPort = (int) integer(root, "rest_port", 0L, 0, 65_535);
        restAddress = text(root, "rest_address", "127.0.0.1");
        parallelism = (int) integer(root, "parallelism", 1L, 1, JoinJob.MAX_PARALLELISM);
        // A prepared transaction that times out while the job is down is lost. The broker allows 15 minutes by default.
        transactionTimeoutMs = integer(root, "transaction_timeout_ms", 900_000L, 10 * checkpointMs, 86_400_000);
        maxDisorderMs = integer(root, "max_disorder_ms", 60_000L, 0, 7 * 86_400_000L);
        check(!root.has("lease") || root.get("lease").isTextual(), "lease", root.get("lease"), "a text");
        lease = root.path("lease").asText();
        JsonNode topics = root.path("topics");
        impressions = text(topics, "topics.impressions", "impressions");
        actions = text(topics, "topics.actions", "actions");
        examples = text(topics, "topics.examples", "examples");
        check(Stream.of(impressions, actions, examples).distinct().count() == 3, "topics", topics, "three different names");

        JsonNode declaration = root.path("declaration");
        check(declaration.isObject(), "declaration", root.get("declaration"), "an object as of Declaration.to_json()");
        windowMs = integer(declaration, "declaration.window_ms", null, 1, 366L * 86_400_000);
        tasks = new ArrayList<>();
        for (JsonNode task : declaration.path("tasks")) {
            check(task.isTextual() && !task.asText().isEmpty(), "declaration.tasks", task, "names of actions");
            tasks.add(task.asText());
        }
        // The state of an impression has one bit of a long for each task.
        check(tasks.size() >= 1 && tasks.size() <= 64, "declaration.tasks", declaration.get("tasks"), "1 to 64 names");
        features = new ArrayList<>();
        for (JsonNode feature : declaration.path("features")) {
            features.add(feature(feature));
        }
        this.declaration = declaration.toString();
    }

    /** Whether event time follows the broker's stamps. If not, a replay owns it. */
    boolean live() {
        return lease.isEmpty();
    }

    /** All topics that the job writes. */
    List<String> outputs() {
        return List.of(examples, impressions + ".dead", impressions + ".late", actions + ".dead", actions + ".late");
    }

    private static Feature feature(JsonNode node) {
        String name = node.path("name").asText();
        String where = "declaration.features." + name;
        JsonNode fallback = node.path("default");
        switch (node.path("kind").asText()) {
            case "id" -> {
                check(fallback.isMissingNode() || Values.isId(fallback), where + ".default", fallback, "an int64, not a reserved one");
                return new Feature(name, Kind.ID, fallback.isMissingNode() ? "0" : fallback.toString());
            }
            case "ids" -> {
                boolean fine = fallback.isMissingNode() || fallback.isArray();
                for (JsonNode id : fallback) {
                    fine &= Values.isId(id);
                }
                check(fine, where + ".default", fallback, "a list of int64, none a reserved one");
                return new Feature(name, Kind.IDS, fallback.isMissingNode() ? "[]" : fallback.toString());
            }
            case "number" -> {
                check(fallback.isMissingNode() || fallback.isNumber(), where + ".default", fallback, "a number");
                return new Feature(name, Kind.NUMBER, fallback.isMissingNode() ? "0.0" : fallback.toString());
            }
            default -> throw new IllegalArgumentException(where + ".kind is " + node.path("kind") + ": allowed are id, ids, number");
        }
    }

    private static String last(String name) {
        return name.substring(name.lastIndexOf('.') + 1);
    }

    private static String text(JsonNode parent, String name, String fallback) {
        JsonNode value = parent.get(last(name));
        if (value == null && fallback != null) {
            return fallback;
        }
        check(value != null && value.isTextual() && !value.asText().isBlank(), name, value, "a text");
        return value.asText();
    }

    private static long integer(JsonNode parent, String name, Long fallback, long low, long high) {
        JsonNode value = parent.get(last(name));
        if (value == null && fallback != null) {
            return fallback;
        }
        check(value != null && value.isIntegralNumber() && value.canConvertToLong() && value.asLong() >= low && value.asLong() <= high,
                name, value, "a whole number, " + low + " to " + high);
        return value.asLong();
    }

    private static void check(boolean fine, String name, JsonNode value, String allowed) {
        if (!fine) {
            throw new IllegalArgumentException("setting " + name + " is " + (value == null ? "missing" : value) + ": allowed is " + allowed);
        }
    }
}
