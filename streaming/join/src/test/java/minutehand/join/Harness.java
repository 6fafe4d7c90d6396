package minutehand.join;

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.Stream;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.runtime.checkpoint.OperatorSubtaskState;
import org.apache.flink.runtime.state.VoidNamespace;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.JsonNode;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.databind.ObjectMapper;
import org.apache.flink.state.rocksdb.EmbeddedRocksDBStateBackend;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.streaming.util.KeyedOneInputStreamOperatorTestHarness;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.producer.ProducerRecord;

/**
 * The join in Flink's own operator harness, on RocksDB as in the job. Messages go in as their bytes, through the source's deserializer;
 * what comes out is told in short lines.
 */
final class Harness implements AutoCloseable {
    static final ObjectMapper JSON = new ObjectMapper();
    /** Window 100 ms, disorder 10 ms, tasks click, like, hate; one feature of each kind. */
    static final String DECLARATION = """
            {"name": "t", "tasks": ["click", "like", "hate"], "judged": "click", "window_ms": 100, "features": [
              {"name": "user", "kind": "id", "table": "user", "default": 7},
              {"name": "tags", "kind": "ids", "table": "tag", "default": []},
              {"name": "age", "kind": "number", "table": "", "default": 0.5}]}""";
    static final long WRITTEN_MS = 1_700_000_000_000L;

    private final KeyedOneInputStreamOperatorTestHarness<String, Event, ProducerRecord<byte[], byte[]>> flink;
    private final Deserializer deserializer;
    private long offset;
    private int told;

    /** Of a replay under the lease "clock". */
    static Settings settings(double pi) throws Exception {
        return settings(pi, "clock");
    }

    /** Disorder 10 ms; live with an empty lease. */
    static Settings settings(double pi, String lease) throws Exception {
        return settings(pi, lease, DECLARATION);
    }

    static Settings settings(double pi, String lease, String declaration) throws Exception {
        return new Settings(JSON.readTree("{\"bootstrap\": \"h:1\", \"source\": \"t\", \"state_dir\": \"state\", \"max_disorder_ms\": 10, \"lease\": \"" + lease
                + "\", \"pi\": " + pi + ", \"declaration\": "
                + declaration + "}"));
    }

    Harness(double pi, OperatorSubtaskState restored) throws Exception {
        this(settings(pi), restored);
    }

    Harness(Settings settings, OperatorSubtaskState restored) throws Exception {
        deserializer = new Deserializer(settings);
        deserializer.open(null);
        flink = new KeyedOneInputStreamOperatorTestHarness<>(new JoinOperator(settings, new Join(settings), 2), Event::key, Types.STRING);
        flink.setStateBackend(new EmbeddedRocksDBStateBackend(true));
        flink.setup();
        if (restored != null) {
            flink.initializeState(restored);
        }
        flink.open();
    }

    Harness() throws Exception {
        this(1.0, null);
    }

    void send(String topic, String message) throws Exception {
        send(topic, WRITTEN_MS, message);
    }

    /** A message that the broker stamped `writtenMs`. */
    void send(String topic, long writtenMs, String message) throws Exception {
        ConsumerRecord<byte[], byte[]> record = new ConsumerRecord<>(topic, 1, offset++, writtenMs, null, 0, 0, null,
                message.getBytes(StandardCharsets.UTF_8), new org.apache.kafka.common.header.internals.RecordHeaders(), java.util.Optional.empty());
        flink.processElement(deserializer.event(record), writtenMs);
    }

    void shown(String id, long ts) throws Exception {
        send("impressions", "{\"impression_id\": \"%s\", \"user_id\": 1, \"item_id\": 2, \"ts_ms\": %d, \"features\": {\"user\": 3}}".formatted(id, ts));
    }

    void acted(String id, String action, long ts) throws Exception {
        send("actions", "{\"impression_id\": \"%s\", \"action\": \"%s\", \"ts_ms\": %d}".formatted(id, action, ts));
    }

    /** Event time comes to `time`. */
    void time(long time) throws Exception {
        flink.processWatermark(time);
    }

    OperatorSubtaskState snapshot(long id) throws Exception {
        return flink.snapshot(id, id);
    }

    int stateEntries() {
        JoinOperator operator = (JoinOperator) flink.getOperator();
        try (Stream<String> keys = operator.<String>getKeyedStateBackend().getKeys("impression", VoidNamespace.INSTANCE)) {
            return (int) keys.count();
        }
    }

    int timers() {
        return flink.numEventTimeTimers();
    }

    /** Everything sent to Kafka since the last call. */
    List<ProducerRecord<byte[], byte[]>> records() {
        List<ProducerRecord<byte[], byte[]>> records = new ArrayList<>();
        for (StreamRecord<? extends ProducerRecord<byte[], byte[]>> record : flink.extractOutputStreamRecords()) {
            records.add(record.getValue());
        }
        List<ProducerRecord<byte[], byte[]>> fresh = List.copyOf(records.subList(told, records.size()));
        told = records.size();
        return fresh;
    }

    /** The same, told: `positive a click`, `negative a like hate`, `actions.late: no impression waiting`, `progress 0 99`. */
    List<String> lines() throws Exception {
        List<String> lines = new ArrayList<>();
        for (ProducerRecord<byte[], byte[]> record : records()) {
            JsonNode json = JSON.readTree(record.value());
            if (json.has("reason")) {
                lines.add(record.topic() + ": " + json.get("reason").asText());
            } else if (json.has("heartbeat_ms")) {
                lines.add("progress " + record.partition() + " " + json.get("heartbeat_ms"));
            } else {
                lines.add(example(json));
            }
        }
        return lines;
    }

    private static String example(JsonNode json) {
        StringBuilder line = new StringBuilder(json.get("kind").asText() + " " + json.get("impression_id").asText());
        String[] tasks = {"click", "like", "hate", "share"};
        for (int task = 0; task < json.get("weights").size(); task++) {
            if (json.get("weights").get(task).asDouble() == 1) {
                boolean positive = json.get("labels").get(task).asDouble() == 1;
                line.append(positive == json.get("kind").asText().equals("positive") ? " " : " WRONG ").append(tasks[task]);
            }
        }
        return line + " @" + json.get("event_ms");
    }

    @Override
    public void close() throws Exception {
        flink.close();
    }
}
