package minutehand.join;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Random;
import java.util.Set;
import java.util.TreeSet;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Live: what becomes of a record follows from its ts_ms and the broker's stamp, never from which partition is read first. */
class LiveTest {
    private static final int WINDOW = 100;
    private static final int DISORDER = 10;

    private record Sent(String topic, int partition, String id, long ts, long written) {
        String message() {
            String fields = topic.equals("actions") ? "\"action\": \"click\"" : "\"user_id\": 1, \"item_id\": 2";
            return "{\"impression_id\": \"%s\", %s, \"ts_ms\": %d}".formatted(id, fields, ts);
        }
    }

    @Test
    void anActionOfAPhoneThatWasOfflineCountsUntilItsWindowIsOver() throws Exception {
        try (Harness join = new Harness(Harness.settings(1.0, ""), null)) {
            join.send("impressions", 1000, "{\"impression_id\": \"a\", \"user_id\": 1, \"item_id\": 2, \"ts_ms\": 1000}");
            join.send("actions", 1110, "{\"impression_id\": \"a\", \"action\": \"click\", \"ts_ms\": 1001}");
            join.send("actions", 1111, "{\"impression_id\": \"a\", \"action\": \"like\", \"ts_ms\": 1001}");
            assertEquals(List.of("positive a click @1001", "actions.late: past the window: its time is 1101, it closes at 1100"), join.lines());
        }
    }

    @Test
    void anImpressionBehindTheBrokerByMoreThanTheDisorderIsLate() throws Exception {
        try (Harness join = new Harness(Harness.settings(1.0, ""), null)) {
            join.send("impressions", 1010, "{\"impression_id\": \"a\", \"user_id\": 1, \"item_id\": 2, \"ts_ms\": 1000}");
            join.send("impressions", 1011, "{\"impression_id\": \"b\", \"user_id\": 1, \"item_id\": 2, \"ts_ms\": 1000}");
            assertEquals(List.of("impressions.late: behind event time"), join.lines());
        }
    }

    @ParameterizedTest
    @ValueSource(longs = {1, 2, 3, 4, 5, 6, 7, 8})
    void theOutcomeIsThatOfTheOfflineJoinInWhateverOrderPartitionsAreRead(long seed) throws Exception {
        Random random = new Random(seed);
        List<Sent> sent = new ArrayList<>();
        for (int i = 0; i < 60; i++) {
            long shown = 2000 + random.nextInt(400);
            // Of a clock that is wrong by up to the disorder, and now and then by more.
            sent.add(sent("impressions", i, shown, random.nextInt(2 * DISORDER + 4) - DISORDER));
            for (int k = random.nextInt(3); k > 0; k--) {
                sent.add(sent("actions", i, shown + random.nextInt(WINDOW + 20) - 5, random.nextInt(8) == 0 ? 60 : random.nextInt(2 * DISORDER) - DISORDER));
            }
        }
        sent.sort(Comparator.comparingLong(Sent::written));
        Set<String> expected = offline(sent);
        assertTrue(expected.stream().anyMatch(line -> line.endsWith("1")) && expected.stream().anyMatch(line -> line.endsWith("0")));
        for (int run = 0; run < 6; run++) {
            assertEquals(expected, joined(sent, random));
        }
    }

    private static Sent sent(String topic, int i, long ts, int behind) {
        return new Sent(topic, i % 2, "i" + i, ts, ts + behind);
    }

    /** Pairs `id 1` and `id 0` of the task click, by the rules of docs/example.md. */
    private static Set<String> offline(List<Sent> sent) {
        Set<String> pairs = new TreeSet<>();
        for (Sent shown : sent) {
            if (shown.topic.equals("impressions") && shown.ts >= shown.written - DISORDER) {
                boolean clicked = sent.stream().anyMatch(a -> a.topic.equals("actions") && a.id.equals(shown.id) && a.ts >= shown.ts
                        && Math.max(a.ts, a.written - DISORDER) <= shown.ts + WINDOW);
                pairs.add(shown.id + (clicked ? " 1" : " 0"));
            }
        }
        return pairs;
    }

    /** The pairs of the join when the four partitions are read in a random order, each in its own. */
    private static Set<String> joined(List<Sent> sent, Random random) throws Exception {
        Settings settings = Harness.settings(1.0, "");
        Set<String> pairs = new TreeSet<>();
        List<List<Sent>> partitions = new ArrayList<>();
        long[] newest = new long[4];
        for (int p = 0; p < 4; p++) {
            int number = p;
            partitions.add(new ArrayList<>(sent.stream().filter(s -> (s.topic.equals("actions") ? 2 : 0) + s.partition == number).toList()));
            newest[p] = 0;
        }
        try (Harness join = new Harness(settings, null)) {
            long mark = Long.MIN_VALUE;
            while (partitions.stream().anyMatch(p -> !p.isEmpty())) {
                int p = random.nextInt(4);
                if (partitions.get(p).isEmpty()) {
                    newest[p] = 10_000;  // the platform's clock goes on in a partition without events
                } else {
                    Sent next = partitions.get(p).remove(0);
                    join.send(next.topic, next.written, next.message());
                    newest[p] = next.written;
                }
                long least = Long.MAX_VALUE;
                for (long time : newest) {
                    least = Math.min(least, time);
                }
                if (least - DISORDER - 1 > mark) {
                    mark = least - DISORDER - 1;
                    join.time(mark);
                }
            }
            join.time(20_000);
            for (ProducerRecord<byte[], byte[]> record : join.records()) {
                String line = new String(record.value());
                if (line.contains("\"labels\"") && Harness.JSON.readTree(line).get("weights").get(0).asInt() == 1) {
                    pairs.add(Harness.JSON.readTree(line).get("impression_id").asText() + " " + Harness.JSON.readTree(line).get("labels").get(0).asInt());
                }
            }
        }
        return pairs;
    }
}
