package minutehand.join;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.node.ArrayNode;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.node.ObjectNode;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;

/** Wrong settings are refused by name; the job's folder is kept apart from others'. */
class SettingsTest {
    private static ObjectNode good() throws Exception {
        return (ObjectNode) Harness.JSON.readTree(
                "{\"bootstrap\": \"h:1\", \"source\": \"t\", \"state_dir\": \"state\", \"declaration\": " + Harness.DECLARATION + "}");
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', value = {
        "bootstrap | 7 | setting bootstrap is 7: allowed is a text",
        "bootstrap | null | setting bootstrap is null: allowed is a text",
        "pi | 0 | setting pi is 0: allowed is a number, 0 < pi <= 1",
        "pi | 1.1 | setting pi is 1.1: allowed is a number, 0 < pi <= 1",
        "pi | \"1\" | setting pi is \"1\": allowed is a number, 0 < pi <= 1",
        "checkpoint_ms | 10 | setting checkpoint_ms is 10: allowed is a whole number, 50 to 600000",
        "rest_port | 70000 | setting rest_port is 70000: allowed is a whole number, 0 to 65535",
        "parallelism | 1.5 | setting parallelism is 1.5: allowed is a whole number, 1 to 64",
        "topics | {\"actions\": \"impressions\"} | three different names",
        "declaration | [] | setting declaration is []: allowed is an object as of Declaration.to_json()",
        "paralellism | 1 | setting paralellism is 1: allowed is no such setting; there are bootstrap, checkpoint_ms",
        "max_disorder_ms | -1 | setting max_disorder_ms is -1: allowed is a whole number, 0 to 604800000",
        "lease | 7 | setting lease is 7: allowed is a text",
        "transaction_timeout_ms | 1 | setting transaction_timeout_ms is 1: allowed is a whole number, 10000 to 86400000",
    })
    void aWrongOneIsNamed(String name, String value, String message) throws Exception {
        ObjectNode root = good();
        root.set(name, Harness.JSON.readTree(value));
        String said = assertThrows(IllegalArgumentException.class, () -> new Settings(root)).getMessage();
        assertTrue(said.contains(message), said);
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', value = {
        "window_ms | 0 | setting declaration.window_ms is 0",
        "tasks | [] | setting declaration.tasks is []: allowed is 1 to 64 names",
        "features | [{\"name\": \"x\", \"kind\": \"text\"}] | declaration.features.x.kind is \"text\": allowed are id, ids, number",
        "features | [{\"name\": \"x\", \"kind\": \"id\", \"default\": -9223372036854775808}] | setting declaration.features.x.default is -9223372036854775808",
        "features | [{\"name\": \"x\", \"kind\": \"ids\", \"default\": [\"a\"]}] | setting declaration.features.x.default is [\"a\"]",
    })
    void aWrongDeclarationToo(String name, String value, String message) throws Exception {
        ObjectNode root = good();
        ((ObjectNode) root.get("declaration")).set(name, Harness.JSON.readTree(value));
        String said = assertThrows(IllegalArgumentException.class, () -> new Settings(root)).getMessage();
        assertTrue(said.contains(message), said);
    }

    @Test
    void aPathThatRocksCannotOpenIsRefused(@TempDir Path root) throws Exception {
        new Folder(root.resolve("a b \u00e9%20+' \u65e5\u672c").toString()).open();
        assertThrows(IllegalArgumentException.class, () -> new Folder(root.resolve("\ud83d\ude00").toString()).open());
    }

    @Test
    void aFolderWhoseCheckpointsAreGoneIsRefused(@TempDir Path root) throws Exception {
        Folder folder = new Folder(root.toString());
        folder.refuseIfEmptied(false);  // a first start, and one that was killed before its first checkpoint
        folder.checkpointed();
        folder.refuseIfEmptied(true);
        String refusal = assertThrows(IllegalArgumentException.class, () -> folder.refuseIfEmptied(false)).getMessage();
        assertTrue(refusal.contains("its checkpoints are gone"), refusal);
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', value = {
        "GET | 127.0.0.1:8081 | 127.0.0.1 | true",
        "HEAD | localhost | 127.0.0.1 | true",
        "GET | [::1]:8081 | 127.0.0.1 | true",
        "POST | 127.0.0.1:8081 | 127.0.0.1 | false",
        "PATCH | 127.0.0.1:8081 | 127.0.0.1 | false",
        "GET | evil.example:8081 | 127.0.0.1 | false",
        "GET | jobmanager:8081 | 0.0.0.0 | true",
    })
    void thePageIsToLookAtFromThisMachine(String method, String host, String address, boolean allowed) {
        assertEquals(allowed, ReadOnlyPage.refusal(method, host, address) == null);
    }

    @Test
    void theNewestCompletedCheckpointIsFoundAndTheRestRemoved(@TempDir Path root) throws Exception {
        Folder folder = new Folder(root.toString());
        folder.open();
        assertTrue(folder.newestCheckpoint().isEmpty());
        for (String done : new String[] {"one/chk-9", "two/chk-10"}) {
            Files.createDirectories(folder.checkpoints().resolve(done));
            Files.writeString(folder.checkpoints().resolve(done).resolve("_metadata"), "");
        }
        Files.createDirectories(folder.checkpoints().resolve("two/chk-11"));
        Files.createDirectories(folder.checkpoints().resolve("three/shared"));
        Path newest = folder.newestCheckpoint().orElseThrow();
        assertEquals(folder.checkpoints().resolve("two/chk-10"), newest);
        folder.keepOnly(newest);
        assertEquals(1, Files.list(folder.checkpoints()).count());
    }

    private static Owner owner(String cluster, ObjectNode settings) throws Exception {
        return new Owner(new Settings(settings), cluster, new TreeMap<>(Map.of("impressions", "1", "actions", "2")));
    }

    @Test
    void anothersStateIsRefused(@TempDir Path root) throws Exception {
        Folder folder = new Folder(root.toString());
        folder.open();
        folder.claim(owner("A", good()), false);
        assertEquals(List.of(), folder.claim(owner("A", good()), true));
        String said = assertThrows(IllegalArgumentException.class, () -> folder.claim(owner("B", good()), true)).getMessage();
        assertTrue(said.contains("it holds the state of another job: cluster is \"B\", was \"A\"; allowed is"), said);
        folder.claim(owner("B", good()), false);
        folder.claim(owner("B", good()), true);
        Settings settings = new Settings(good());
        String former = "B {actions=2, impressions=1} " + Records.sha256(Bytes.utf8(
                "2t" + settings.tasks + settings.features + "100true"));
        Files.writeString(root.resolve("job.json"), former);
        assertEquals(List.of(), folder.claim(owner("B", good()), true));
        Files.writeString(root.resolve("job.json"), "A {} 0123");
        assertThrows(IllegalArgumentException.class, () -> folder.claim(owner("B", good()), true));
    }

    @ParameterizedTest
    @CsvSource(delimiter = '|', value = {
        "/declaration/tasks | [\"click\", \"like\", \"hate\", \"share\"] | + task share is added",
        "/declaration/tasks | [\"click\", \"hate\", \"like\"] | tasks are [\"click\",\"hate\",\"like\"], were [\"click\",\"like\",\"hate\"]",
        "/declaration/tasks | [\"click\"] | tasks are [\"click\"], were [\"click\",\"like\",\"hate\"]",
        "/declaration/window_ms | 101 | window_ms is 101, was 100",
        "/declaration/features/0/kind | \"number\" | feature user: kind is \"number\", was \"id\"",
        "/declaration/features/0/default | 8 | feature user: default is 8, was 7",
        "/declaration/features/0/default | 7 | =",
        "/declaration/features/2/default | 0.50 | =",
        "/declaration/features/0/table | \"people\" | feature user: table is \"people\", was \"user\"",
        "/declaration/judged | \"like\" | judged is \"like\", was \"click\"",
        "/declaration/features/1 | {\"name\": \"hits\", \"kind\": \"number\"} | feature tags is removed",
        "/declaration/features/3 | {\"name\": \"hits\", \"kind\": \"number\"} | + feature hits is added",
        "/declaration/features | [{\"name\": \"tags\", \"kind\": \"ids\"}, {\"name\": \"user\", \"kind\": \"id\"}, {\"name\": \"age\", \"kind\": \"number\"}]"
                + " | the order of the features is [tags, user, age], was [user, tags, age]",
        "/lease | \"l\" | clock is \"replay\", was \"live\"",
        "/source | \"u\" | source is \"u\", was \"t\"",
    })
    void aStateIsForTheSameDeclarationOrOneThatGrewFromIt(String place, String value, String expected) throws Exception {
        ObjectNode changed = good();
        int at = place.lastIndexOf('/');
        JsonNode parent = changed.at(place.substring(0, at));
        JsonNode node = Harness.JSON.readTree(value);
        if (parent instanceof ArrayNode list) {
            int index = Integer.parseInt(place.substring(at + 1));
            if (index < list.size()) {
                list.set(index, node);
            } else {
                list.add(node);
            }
        } else {
            ((ObjectNode) parent).set(place.substring(at + 1), node);
        }
        Owner.Growth growth = owner("A", changed).since(owner("A", good()).toJson());
        List<String> lines = new ArrayList<>(growth.refused());
        growth.added().forEach(line -> lines.add("+ " + line));
        assertTrue(expected.equals("=") ? lines.isEmpty() : lines.contains(expected), lines.toString());
    }
}
