package minutehand.join;

import static org.junit.jupiter.api.Assertions.assertEquals;

import java.util.ArrayList;
import java.util.List;
import org.apache.flink.api.common.eventtime.Watermark;
import org.apache.flink.api.common.eventtime.WatermarkOutput;
import org.apache.flink.runtime.checkpoint.OperatorSubtaskState;
import org.apache.flink.streaming.api.operators.ProcessOperator;
import org.apache.flink.streaming.util.OneInputStreamOperatorTestHarness;
import org.junit.jupiter.api.Test;

/** Event time of a partition, and what is too far ahead of it. */
class EdgeTest {
    private static Event event(byte kind, int partition, long ts) {
        Event event = new Event();
        event.kind = kind;
        event.partition = partition;
        event.tsMs = ts;
        event.key = kind == Event.HEARTBEAT ? "" : "a";
        return event;
    }

    private static OneInputStreamOperatorTestHarness<Event, Event> edge(Settings settings, OperatorSubtaskState restored) throws Exception {
        OneInputStreamOperatorTestHarness<Event, Event> flink =
                new OneInputStreamOperatorTestHarness<>(new ProcessOperator<>(new Edge(settings)));
        flink.setup();
        if (restored != null) {
            flink.initializeState(restored);
        }
        flink.open();
        return flink;
    }

    private static List<Integer> kinds(OneInputStreamOperatorTestHarness<Event, Event> flink) {
        return flink.extractOutputValues().stream().map(event -> (int) event.kind).toList();
    }

    @Test
    void farFutureIsJudgedByThePartitionsOwnHeartbeat() throws Exception {
        try (OneInputStreamOperatorTestHarness<Event, Event> flink = edge(Harness.settings(1.0), null)) {
            flink.processElement(event(Event.ACTION, 0, 9_000_000), 0);     // nothing is known yet
            flink.processElement(event(Event.HEARTBEAT, 0, 1000), 0);
            flink.processElement(event(Event.HEARTBEAT, 0, 900), 0);        // an older one takes nothing back
            flink.processElement(event(Event.ACTION, 0, 3_601_000), 0);     // exactly an hour ahead
            flink.processElement(event(Event.ACTION, 0, 3_601_001), 0);
            flink.processElement(event(Event.IMPRESSION, 0, 3_601_001), 0);
            flink.processElement(event(Event.ACTION, 1, 3_601_001), 0);     // another partition
            assertEquals(List.of(1, 1, 3, 3, 1), kinds(flink));
            String dead = new String(flink.extractOutputValues().get(2).body);
            assertEquals("ts_ms is 3601001, in the future: the newest heartbeat before it is 1000", Harness.JSON.readTree(dead).get("reason").asText());
        }
    }

    @Test
    void aRestoredJobStillKnows() throws Exception {
        OperatorSubtaskState state;
        try (OneInputStreamOperatorTestHarness<Event, Event> flink = edge(Harness.settings(1.0), null)) {
            flink.processElement(event(Event.HEARTBEAT, 0, 1000), 0);
            state = flink.snapshot(1, 1);
        }
        try (OneInputStreamOperatorTestHarness<Event, Event> flink = edge(Harness.settings(1.0), state)) {
            flink.processElement(event(Event.IMPRESSION, 0, 3_601_001), 0);
            assertEquals(List.of(3), kinds(flink));
        }
    }

    @Test
    void liveTheFutureIsJudgedByTheBrokersStamp() throws Exception {
        try (OneInputStreamOperatorTestHarness<Event, Event> flink = edge(Harness.settings(1.0, ""), null)) {
            flink.processElement(event(Event.HEARTBEAT, 0, 2_015_360_000_000L), 0);  // nobody's clock
            for (long ts : new long[] {4000, 5010, 5011}) {
                Event event = event(Event.ACTION, 0, ts);
                event.writtenMs = 5000;
                flink.processElement(event, 0);
            }
            assertEquals(List.of(1, 1, 3), kinds(flink));
            String dead = new String(flink.extractOutputValues().get(2).body);
            assertEquals("ts_ms is 5011, in the future: the broker's clock was at 5000", Harness.JSON.readTree(dead).get("reason").asText());
        }
    }

    private static List<Long> marks(PartitionTime time, Event... events) {
        List<Long> marks = new ArrayList<>();
        WatermarkOutput output = new WatermarkOutput() {
            @Override
            public void emitWatermark(Watermark mark) {
                marks.add(mark.getTimestamp());
            }

            @Override
            public void markIdle() {}

            @Override
            public void markActive() {}
        };
        for (Event event : events) {
            time.onEvent(event, event.writtenMs, output);
            time.onPeriodicEmit(output);
        }
        return marks;
    }

    @Test
    void inAReplayOnlyHeartbeatsMoveEventTimeAndNeverBack() throws Exception {
        assertEquals(List.of(989L, 990L), marks(new PartitionTime(Harness.settings(1.0)),
                event(Event.IMPRESSION, 0, 5000), event(Event.HEARTBEAT, 0, 1000), event(Event.HEARTBEAT, 0, 1000),
                event(Event.HEARTBEAT, 0, 900), event(Event.BAD, 0, 9000), event(Event.HEARTBEAT, 0, 1001)));
    }

    @Test
    void liveTheBrokersStampsMoveItWhateverTheRecordsSay() throws Exception {
        Event[] events = {event(Event.IMPRESSION, 0, 9000), event(Event.HEARTBEAT, 0, 9_000_000), event(Event.BAD, 0, 0), event(Event.ACTION, 0, 1)};
        long[] stamps = {1000, 1001, 1500, 1400};  // the last one: the broker's clock was set back
        for (int i = 0; i < events.length; i++) {
            events[i].writtenMs = stamps[i];
        }
        assertEquals(List.of(989L, 990L, 1489L), marks(new PartitionTime(Harness.settings(1.0, "")), events));
    }
}
