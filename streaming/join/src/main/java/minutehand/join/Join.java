package minutehand.join;

import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.state.ListState;
import org.apache.flink.api.common.state.ListStateDescriptor;
import org.apache.flink.api.common.state.ValueState;
import org.apache.flink.api.common.state.ValueStateDescriptor;
import org.apache.flink.api.common.typeinfo.PrimitiveArrayTypeInfo;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.metrics.Counter;
import org.apache.flink.metrics.MetricGroup;
import org.apache.flink.runtime.state.FunctionInitializationContext;
import org.apache.flink.runtime.state.FunctionSnapshotContext;
import org.apache.flink.streaming.api.checkpoint.CheckpointedFunction;
import org.apache.flink.streaming.api.functions.KeyedProcessFunction;
import org.apache.flink.util.Collector;
import org.apache.kafka.clients.producer.ProducerRecord;

/**
 * The state machine of an impression (docs/example.md).
 *
 * <p>Each impression_id has one state value and one timer that ends it. No value is the state "none"; {@link State}
 * tells "waiting" from "held actions". W is Flink's watermark, or the floor of a restored job while that is higher.
 * Watermarks are not checkpointed; without the floor a late duplicate could open a closed window again.
 */
final class Join extends KeyedProcessFunction<String, Event, ProducerRecord<byte[], byte[]>> implements CheckpointedFunction {
    /** More held actions of one unknown impression are a fault of the client. */
    static final int MAX_HELD = 256;

    private final Settings settings;
    private long floor = Long.MIN_VALUE;
    private transient Records records;
    private transient long saltHash;
    private transient long allTasks;
    private transient ValueState<byte[]> state;
    private transient ListState<Long> savedFloor;
    private transient Counter positives;
    private transient Counter negatives;
    private transient Counter sampledOut;
    private transient Counter duplicates;
    private transient Counter late;
    private transient Counter dead;

    Join(Settings settings) {
        this.settings = settings;
    }

    @Override
    public void open(OpenContext context) {
        records = new Records(settings);
        saltHash = Hash.saltHash(settings.salt);
        allTasks = settings.tasks.size() == 64 ? -1L : (1L << settings.tasks.size()) - 1;
        state = getRuntimeContext().getState(new ValueStateDescriptor<>("impression", PrimitiveArrayTypeInfo.BYTE_PRIMITIVE_ARRAY_TYPE_INFO));
        MetricGroup metrics = getRuntimeContext().getMetricGroup();
        positives = metrics.counter("positives");
        negatives = metrics.counter("negatives");
        sampledOut = metrics.counter("sampledOut");
        duplicates = metrics.counter("duplicates");
        late = metrics.counter("late");
        dead = metrics.counter("dead");
    }

    /** Event time has reached `watermark`, and all its records are written. */
    void passed(long watermark) {
        floor = Math.max(floor, watermark);
    }

    /** The time of the join, W. It never falls, even after a restore. */
    long time() {
        return floor;
    }

    @Override
    public void processElement(Event event, Context context, Collector<ProducerRecord<byte[], byte[]>> out) throws Exception {
        if (event.kind == Event.BAD) {
            dead(event, event.body, out);
            return;
        }
        byte[] now = state.value();
        if (event.kind == Event.IMPRESSION) {
            impression(event, now, context, out);
        } else if (State.isWaiting(now)) {
            if (answer(event, now, out)) {
                state.update(now);
            }
        } else if (event.tsMs <= floor) {
            late(event, "no impression waiting", out);
        } else if (State.heldCount(now) >= MAX_HELD) {
            dead(event, records.explained("held", MAX_HELD + " actions are held for this impression already", event, event.message), out);
        } else {
            state.update(State.hold(now, event));
            context.timerService().registerEventTimeTimer(event.tsMs);
        }
    }

    private void impression(Event event, byte[] now, Context context, Collector<ProducerRecord<byte[], byte[]>> out) throws IOException {
        if (State.isWaiting(now)) {
            duplicates.inc();
            return;
        }
        if (event.tsMs <= floor) {
            late(event, "behind event time", out);
            return;
        }
        byte[] waiting = State.waiting(event.tsMs, event.body);
        for (Event action : State.held(now)) {
            answer(action, waiting, out);
        }
        state.update(waiting);
        context.timerService().registerEventTimeTimer(event.tsMs + settings.windowMs);
    }

    /** Judges an action by its waiting impression. Returns whether the state changed. */
    private boolean answer(Event action, byte[] waiting, Collector<ProducerRecord<byte[], byte[]>> out) {
        long shown = State.shownMs(waiting);
        if (action.tsMs < shown) {
            String reason = "before its impression: ts_ms is " + action.tsMs + ", the impression's " + shown;
            dead(action, records.explained("order", reason, action, action.message), out);
            return false;
        }
        if (action.tsMs > shown + settings.windowMs) {
            late(action, "past the window: ts_ms is " + action.tsMs + ", it closes at " + (shown + settings.windowMs), out);
            return false;
        }
        long closed = State.closedTasks(waiting);
        if ((closed >>> action.task & 1) == 1) {
            duplicates.inc();
            return false;
        }
        State.setClosedTasks(waiting, closed | 1L << action.task);
        positives.inc();
        out.collect(records.positive(Bytes.utf8(action.key), waiting, State.BODY, action.task, action.body, action.tsMs, action.writtenMs));
        return true;
    }

    @Override
    public void onTimer(long time, OnTimerContext context, Collector<ProducerRecord<byte[], byte[]>> out) throws Exception {
        byte[] now = state.value();
        if (now == null) {
            return;
        }
        if (State.isWaiting(now)) {
            long closes = State.shownMs(now) + settings.windowMs;
            // An earlier timer belongs to an action that was held before the impression came.
            if (time >= closes) {
                close(context.getCurrentKey(), now, closes, out);
                state.clear();
            }
            return;
        }
        List<Event> younger = new ArrayList<>();
        for (Event action : State.held(now)) {
            if (action.tsMs <= time) {
                late(action, "no impression waiting", out);
            } else {
                younger.add(action);
            }
        }
        if (younger.isEmpty()) {
            state.clear();
            return;
        }
        byte[] rest = null;
        for (Event action : younger) {
            rest = State.hold(rest, action);
        }
        state.update(rest);
    }

    private void close(String key, byte[] waiting, long closes, Collector<ProducerRecord<byte[], byte[]>> out) {
        long open = allTasks & ~State.closedTasks(waiting);
        if (open == 0) {
            return;
        }
        byte[] id = Bytes.utf8(key);
        if (Hash.draw(saltHash, id) < settings.pi) {
            negatives.inc(Long.bitCount(open));
            out.collect(records.negative(id, waiting, State.BODY, open, closes, System.currentTimeMillis()));
        } else {
            sampledOut.inc(Long.bitCount(open));
        }
    }

    private void late(Event event, String reason, Collector<ProducerRecord<byte[], byte[]>> out) {
        late.inc();
        out.collect(records.late(event, reason));
    }

    private void dead(Event event, byte[] explained, Collector<ProducerRecord<byte[], byte[]>> out) {
        dead.inc();
        out.collect(records.dead(event, explained));
    }

    @Override
    public void initializeState(FunctionInitializationContext context) throws Exception {
        // A union: each subtask of a rescaled job sees the highest floor.
        savedFloor = context.getOperatorStateStore().getUnionListState(new ListStateDescriptor<>("floor", Types.LONG));
        for (long saved : savedFloor.get()) {
            floor = Math.max(floor, saved);
        }
    }

    @Override
    public void snapshotState(FunctionSnapshotContext context) throws Exception {
        savedFloor.update(List.of(floor));
    }
}
