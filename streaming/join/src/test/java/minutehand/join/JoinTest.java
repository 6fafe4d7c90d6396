package minutehand.join;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.Collections;
import java.util.HashSet;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.stream.Stream;
import org.apache.flink.runtime.checkpoint.OperatorSubtaskState;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;

/** The state machine of docs/example.md, row by row: window 100, tasks click, like, hate. */
class JoinTest {
    /** Steps: `a@5` is impression a at 5, `a.click@7` an action, `=9` event time comes to 9. */
    record Case(String name, String steps, String... expected) {}

    private static final List<Case> CASES = List.of(
            new Case("no action: one record carries all negatives, at the window's end",
                    "a@5 =104 =105", "p104", "negative a click like hate @105", "p105"),
            new Case("an action is a positive at once, the other tasks are negatives",
                    "a@5 a.like@6 =200", "positive a like @6", "negative a click hate @105", "p200"),
            new Case("all tasks acted: nothing is left to say",
                    "a@5 a.like@6 a.click@7 a.hate@8 =200", "positive a like @6", "positive a click @7", "positive a hate @8", "p200"),
            new Case("an action at the impression's own time counts", "a@5 a.click@5", "positive a click @5"),
            new Case("an action one tick before its impression is dead",
                    "a@5 a.click@4 =105", "actions.dead: before its impression: ts_ms is 4, the impression's 5", "negative a click like hate @105", "p105"),
            new Case("an action exactly at the window's end counts", "a@5 a.click@105", "positive a click @105"),
            new Case("one tick past it is late, and the task stays a negative",
                    "a@5 a.click@106 =105", "actions.late: past the window: its time is 106, it closes at 105", "negative a click like hate @105", "p105"),
            new Case("late is decided by event time, not by arrival: just before the window closes",
                    "a@5 =104 a.click@20 =105", "p104", "positive a click @20", "negative a like hate @105", "p105"),
            new Case("after it closed the same action finds nothing",
                    "a@5 =105 a.click@20", "negative a click like hate @105", "p105", "actions.late: no impression waiting"),
            new Case("a second action of a pair is a duplicate",
                    "a@5 a.click@6 a.click@6 a.click@9 =105", "positive a click @6", "negative a like hate @105", "p105"),
            new Case("an impression again is a duplicate, whatever it says", "a@5 a@5 a@50 =105", "negative a click like hate @105", "p105"),
            new Case("and does not open a window again once closed",
                    "a@5 =105 a@5 =300", "negative a click like hate @105", "p105", "impressions.late: behind event time", "p300"),
            new Case("an impression at W is late", "=50 a@50", "p50", "impressions.late: behind event time"),
            new Case("one tick after W it waits", "=50 a@51 =151", "p50", "negative a click like hate @151", "p151"),
            new Case("an action may come first: it is held",
                    "a.click@20 a@5 =105", "positive a click @20", "negative a like hate @105", "p105"),
            new Case("held actions are judged like others, in their order",
                    "a.click@4 a.click@106 a.like@7 a.like@8 a.hate@105 a@5",
                    "actions.dead: before its impression: ts_ms is 4, the impression's 5", "actions.late: past the window: its time is 106, it closes at 105",
                    "positive a like @7", "positive a hate @105"),
            new Case("a held action without impression is late when event time reaches it",
                    "a.click@20 =19 =20", "p19", "actions.late: no impression waiting", "p20"),
            new Case("each held action at its own time",
                    "a.click@20 a.like@30 =20 =30", "actions.late: no impression waiting", "p20", "actions.late: no impression waiting", "p30"),
            new Case("the rest of the held ones may still find their impression",
                    "a.click@20 a.like@30 =20 a@25 =125",
                    "actions.late: no impression waiting", "p20", "positive a like @30", "negative a click hate @125", "p125"),
            new Case("an action at W without impression is late at once", "=20 a.click@20", "p20", "actions.late: no impression waiting"),
            new Case("a held action's old timer does not close the window",
                    "a.click@20 a@5 =20 a.like@30 =105", "positive a click @20", "p20", "positive a like @30", "negative a hate @105", "p105"),
            new Case("an action past the window that comes after it closed waits for event time too",
                    "a@5 =105 a.click@150 =150", "negative a click like hate @105", "p105", "actions.late: no impression waiting", "p150"),
            new Case("impressions do not meet each other's actions",
                    "a@5 b@5 b.click@6 =105", "positive b click @6", "negative b like hate @105", "negative a click like hate @105", "p105"),
            new Case("event time never falls", "=50 =40 a@45 =50 =51", "p50", "impressions.late: behind event time", "p51"));

    @TestFactory
    Stream<DynamicTest> everyRow() {
        return CASES.stream().map(one -> DynamicTest.dynamicTest(one.name + " [" + one.steps + "]", () -> {
            try (Harness join = new Harness()) {
                run(join, one.steps);
                List<String> expected = new ArrayList<>();
                for (String line : one.expected) {
                    if (line.matches("p\\d+")) {
                        expected.add("progress 0 " + line.substring(1));
                        expected.add("progress 1 " + line.substring(1));
                    } else {
                        expected.add(line);
                    }
                }
                List<String> lines = join.lines();
                // Windows that close at one time close in no certain order; all of them before the progress.
                assertEquals(progressAt(expected), progressAt(lines));
                Collections.sort(expected);
                Collections.sort(lines);
                assertEquals(expected, lines);
            }
        }));
    }

    private static List<Integer> progressAt(List<String> lines) {
        List<Integer> places = new ArrayList<>();
        for (int i = 0; i < lines.size(); i++) {
            if (lines.get(i).startsWith("progress")) {
                places.add(i);
            }
        }
        return places;
    }

    private static void run(Harness join, String steps) throws Exception {
        for (String step : steps.split(" ")) {
            if (step.startsWith("=")) {
                join.time(Long.parseLong(step.substring(1)));
                continue;
            }
            String[] parts = step.split("[.@]");
            if (parts.length == 2) {
                join.shown(parts[0], Long.parseLong(parts[1]));
            } else {
                join.acted(parts[0], parts[1], Long.parseLong(parts[2]));
            }
        }
    }

    @Test
    void disorderChangesNothing() throws Exception {
        String[] events = "a@5 a.click@6 b@7 a.click@6 b@7 b.like@107 b.hate@108 c.hate@9 c@9 d@12 a@5".split(" ");
        Set<List<String>> outcomes = new HashSet<>();
        for (int seed = 0; seed < 20; seed++) {
            List<String> shuffled = new ArrayList<>(List.of(events));
            Collections.shuffle(shuffled, new Random(seed));
            try (Harness join = new Harness()) {
                run(join, String.join(" ", shuffled) + " =300");
                List<String> lines = join.lines();
                Collections.sort(lines);
                outcomes.add(lines);
            }
        }
        assertEquals(1, outcomes.size(), outcomes.toString());
    }

    @Test
    void allStateEndsWithTime() throws Exception {
        try (Harness join = new Harness()) {
            for (int i = 0; i < 200; i++) {
                join.shown("i" + i, 10 + i);
                join.acted("i" + i, "click", 10 + i);
                join.acted("unknown" + i, "click", 10 + i);
            }
            assertEquals(400, join.stateEntries());
            assertEquals(400, join.timers());
            join.time(309);
            assertEquals(0, join.stateEntries());
            assertEquals(0, join.timers());
        }
    }

    @Test
    void heldActionsAreLimited() throws Exception {
        try (Harness join = new Harness()) {
            for (int i = 0; i <= Join.MAX_HELD; i++) {
                join.acted("a", "click", 10);
            }
            assertEquals(List.of("actions.dead: 256 actions are held for this impression already"), join.lines());
        }
    }

    @Test
    void sampledOutByTheDrawAloneAndPositivesAlwaysKept() throws Exception {
        Set<String> positives = new HashSet<>();
        Set<String> negatives = new HashSet<>();
        Set<String> below = new HashSet<>();
        long salt = Hash.saltHash("minutehand");
        try (Harness join = new Harness(0.3, null)) {
            for (int i = 0; i < 500; i++) {
                join.shown("i" + i, 10);
                join.acted("i" + i, "like", 11);
                if (Hash.draw(salt, Bytes.utf8("i" + i)) < 0.3) {
                    below.add("i" + i);
                }
            }
            join.time(110);
            for (ProducerRecord<byte[], byte[]> record : join.records()) {
                JsonNode json = Harness.JSON.readTree(record.value());
                if (json.has("kind")) {
                    assertEquals(0.3, json.get("pi").asDouble());
                    (json.get("kind").asText().equals("positive") ? positives : negatives).add(json.get("impression_id").asText());
                }
            }
        }
        assertEquals(500, positives.size());
        assertEquals(below, negatives);
        assertTrue(below.size() > 100 && below.size() < 200, "" + below.size());
    }

    @Test
    void aRestoredJobGoesOnAndReopensNothing() throws Exception {
        OperatorSubtaskState state;
        try (Harness join = new Harness()) {
            run(join, "old@5 open@200 open.click@201 unmet.click@250 =210");
            state = join.snapshot(1);
        }
        try (Harness join = new Harness(1.0, state)) {
            // Event time itself is not restored; the floor is.
            run(join, "old@5 new@210 old.click@50 open@200 open.click@201 open.like@202");
            assertEquals(List.of("impressions.late: behind event time", "impressions.late: behind event time", "actions.late: no impression waiting",
                    "positive open like @202"), join.lines());
            run(join, "=150 =210");
            assertEquals(List.of(), join.lines(), "progress never falls and is not repeated");
            run(join, "=300");
            assertEquals(List.of("actions.late: no impression waiting", "negative open hate @300", "progress 0 300", "progress 1 300"), join.lines());
            assertEquals(0, join.stateEntries());
        }
    }

    @Test
    void aRestoredStateGoesOnUnderADeclarationThatGrew() throws Exception {
        OperatorSubtaskState state;
        try (Harness join = new Harness()) {
            run(join, "a@5 a.like@6 all@7 all.click@8 all.like@8 all.hate@8 held.hate@9");
            assertEquals(4, join.lines().size());
            state = join.snapshot(1);
        }
        String grown = Harness.DECLARATION.replace("\"hate\"]", "\"hate\", \"share\"]")
                .replace("0.5}]", "0.5}, {\"name\": \"hits\", \"kind\": \"number\", \"table\": \"\", \"default\": 2}]");
        try (Harness join = new Harness(Harness.settings(1.0, "clock", grown), state)) {
            run(join, "a.like@7 a.share@8 held@9 b@10 b.share@11 =200");
            assertEquals(List.of("positive a share @8", "positive held hate @9", "positive b share @11", "negative a click hate @105",
                    "negative all share @107", "negative held click like share @109", "negative b click like hate @110", "progress 0 200", "progress 1 200"),
                    join.lines());
        }
    }

    @Test
    void aRecordSaysAllItShould() throws Exception {
        try (Harness join = new Harness()) {
            long before = System.currentTimeMillis();
            join.send("impressions", """
                    {"impression_id": "ü\\"1", "request_id": "r", "user_id": -1, "item_id": 9223372036854775807, "ts_ms": 5, "position": 2, "arm": "x", "more": [{}],
                     "features": {"age": 1.5e0, "tags": [3, -4], "user": 0, "gone": "x"}, "scores": {"like": 0.25}, "lineage": "000001-ab", "seq": 12}""");
            join.send("actions", "{\"impression_id\": \"ü\\\"1\", \"action\": \"like\", \"ts_ms\": 8, \"value\": 3.5}");
            join.time(105);
            List<ProducerRecord<byte[], byte[]>> records = join.records();
            String shared = """
                    "impression_id": "ü\\"1", "request_id": "r", "user_id": -1, "item_id": 9223372036854775807, "ts_ms": 5, "position": 2,
                    "lineage": "000001-ab", "seq": 12,
                    "features": {"user": 0, "tags": [3, -4], "age": 1.5}, "scores": {"like": 0.25}, "pi": 1.0, "v": 2""";
            JsonNode positive = Harness.JSON.readTree(records.get(0).value());
            assertEquals(Harness.JSON.readTree("{%s, \"kind\": \"positive\", \"event_ms\": 8, \"written_ms\": %d, \"labels\": [0, 1, 0], \"weights\": [0, 1, 0], \"values\": [null, 3.5, null]}"
                    .formatted(shared, Harness.WRITTEN_MS)), positive);
            JsonNode negative = Harness.JSON.readTree(records.get(1).value());
            long written = negative.get("written_ms").asLong();
            assertEquals(Harness.JSON.readTree("{%s, \"kind\": \"negative\", \"event_ms\": 105, \"written_ms\": %d, \"labels\": [0, 0, 0], \"weights\": [1, 0, 1], \"values\": [null, null, null]}"
                    .formatted(shared, written)), negative);
            assertTrue(written >= before && written <= System.currentTimeMillis());
            assertEquals("examples", records.get(1).topic());
            assertEquals("ü\"1", new String(records.get(1).key(), "UTF-8"));
            assertNull(records.get(1).partition(), "examples go where their key belongs");
            assertEquals("user tags age", String.join(" ", (Iterable<String>) positive.get("features")::fieldNames), "declared order");
            assertEquals("{\"heartbeat_ms\":105,\"subtask\":0,\"subtasks\":1}", new String(records.get(2).value()));
        }
    }
}
