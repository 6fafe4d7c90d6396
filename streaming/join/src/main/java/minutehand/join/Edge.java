package minutehand.join;

import java.util.HashMap;
import java.util.Map;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.state.ListState;
import org.apache.flink.api.common.state.ListStateDescriptor;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.java.tuple.Tuple2;
import org.apache.flink.runtime.state.FunctionInitializationContext;
import org.apache.flink.runtime.state.FunctionSnapshotContext;
import org.apache.flink.streaming.api.checkpoint.CheckpointedFunction;
import org.apache.flink.streaming.api.functions.ProcessFunction;
import org.apache.flink.util.Collector;

/**
 * Passes events on, takes heartbeats out, and makes events of the far future bad: their state would stay for years.
 *
 * <p>It compares an event with the newest heartbeat before it in its own partition. The time of the whole join would
 * not do: it depends on which partition is read first, and after an hour of downtime good events would be refused.
 */
final class Edge extends ProcessFunction<Event, Event> implements CheckpointedFunction {
    static final long FUTURE_MS = 3_600_000;

    private final Settings settings;
    private final Map<String, Long> newest = new HashMap<>();
    private transient Records records;
    private transient ListState<Tuple2<String, Long>> saved;

    Edge(Settings settings) {
        this.settings = settings;
    }

    @Override
    public void open(OpenContext context) {
        records = new Records(settings);
    }

    @Override
    public void processElement(Event event, Context context, Collector<Event> out) {
        if (event.kind == Event.HEARTBEAT) {
            newest.merge(origin(event), event.tsMs, Math::max);
            return;
        }
        if (event.kind != Event.BAD) {
            Long heartbeat = newest.get(origin(event));
            if (heartbeat != null && event.tsMs > heartbeat + FUTURE_MS) {
                String reason = "ts_ms is " + event.tsMs + ", far in the future: the newest heartbeat before it is " + heartbeat;
                event.bad(records.explained("future", reason, event, event.message));
            }
        }
        out.collect(event);
    }

    private static String origin(Event event) {
        return (event.fromActions ? "actions-" : "impressions-") + event.partition;
    }

    @Override
    public void initializeState(FunctionInitializationContext context) throws Exception {
        // A union: partitions may move to another subtask at a restore.
        saved = context.getOperatorStateStore().getUnionListState(new ListStateDescriptor<>("newest-heartbeats", Types.TUPLE(Types.STRING, Types.LONG)));
        for (Tuple2<String, Long> one : saved.get()) {
            newest.merge(one.f0, one.f1, Math::max);
        }
    }

    @Override
    public void snapshotState(FunctionSnapshotContext context) throws Exception {
        saved.clear();
        for (Map.Entry<String, Long> one : newest.entrySet()) {
            saved.add(Tuple2.of(one.getKey(), one.getValue()));
        }
    }
}
